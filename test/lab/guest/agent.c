/*
 * The guest agent of the test guest: a child of the writer that answers QEMU's guest agent protocol on the
 * virtio-serial port org.qemu.guest_agent.0, one command after the other, as the real one does. To be frozen means
 * that the writer stands still between two rounds. That outlives the agent, as it does in a real guest: an agent
 * that is started again can thaw what the one before has frozen. It misbehaves when told (test/lab/README.md).
 */
#define _GNU_SOURCE
#include "agent.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AGENT_PORT "org.qemu.guest_agent.0"

/* Shared by writer and agent. */
struct share {
  int frozen;         /* what the agent wants */
  int standing;       /* what the writer does */
  int open;           /* has its port, or knows that there is none */
  int deaf;           /* reads nothing */
  int die_frozen;     /* dies when it has answered the next freeze */
  int refuse;         /* answers a freeze with an error */
  unsigned late_ms;   /* waits that long before the next freeze, and only then freezes and answers */
  unsigned freezes, thaws;
};

static volatile struct share *share;
static pid_t agent_pid;
static unsigned file_system_count;

static int run_agent(void);

void agent_start(unsigned file_systems) {
  file_system_count = file_systems;
  if (!share) {
    void *memory = mmap(NULL, sizeof *share, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    share = memory;
  }
  if (agent_pid > 0) return;
  share->open = 0;
  agent_pid = fork();
  if (agent_pid == 0) _exit(run_agent());
  for (int tries = 0; agent_pid > 0 && !share->open && tries < 2000; tries++) usleep(1000);
}

int agent_wants_frozen(void) {
  if (agent_pid > 0 && waitpid(agent_pid, NULL, WNOHANG) == agent_pid) agent_pid = 0;
  return share && __atomic_load_n(&share->frozen, __ATOMIC_SEQ_CST);
}

void agent_set_standing(int standing) {
  if (share) __atomic_store_n(&share->standing, standing, __ATOMIC_SEQ_CST);
}

int agent_obey(const char *word, unsigned number) {
  if (!share) return 0;
  if (!strcmp(word, "agent-deaf")) share->deaf = (int)number;
  else if (!strcmp(word, "agent-late")) share->late_ms = number;
  else if (!strcmp(word, "agent-refuse")) share->refuse = (int)number;
  else if (!strcmp(word, "agent-die-frozen")) share->die_frozen = 1;
  else if (!strcmp(word, "agent-start")) agent_start(file_system_count);
  else if (!strcmp(word, "agent-die")) {
    if (agent_pid > 0) kill(agent_pid, SIGKILL), waitpid(agent_pid, NULL, 0);
    agent_pid = 0;
  } else return 0;
  return 1;
}

static void reply(int port, const char *text) {
  size_t length = strlen(text), done = 0;
  for (int tries = 0; done < length && tries < 5000; tries++) {
    ssize_t wrote = write(port, text + done, length - done);
    if (wrote > 0) done += (size_t)wrote;
    else usleep(1000);
  }
}

/* The string or number behind `"key":` in a flat JSON text. */
static int value_of(const char *text, const char *key, char *out, size_t size) {
  const char *at = strstr(text, key);
  if (!at) return 0;
  at += strlen(key);
  at += strspn(at, "\" :");
  size_t length = strcspn(at, "\",} ");
  if (length >= size) return 0;
  memcpy(out, at, length);
  out[length] = 0;
  return 1;
}

static void freeze(int port) {
  char text[64];
  if (share->refuse) {
    reply(port, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"failed to freeze: told to refuse\"}}\n");
    return;
  }
  if (share->late_ms) usleep(share->late_ms * 1000);
  share->late_ms = 0;
  __atomic_store_n(&share->frozen, 1, __ATOMIC_SEQ_CST);
  while (!__atomic_load_n(&share->standing, __ATOMIC_SEQ_CST)) usleep(500);
  share->freezes++;
  snprintf(text, sizeof text, "{\"return\":%u}\n", file_system_count);
  reply(port, text);
  if (share->die_frozen) {
    share->die_frozen = 0;
    usleep(50000); /* the answer is on its way */
    _exit(0);
  }
}

static void thaw(int port) {
  char text[64];
  int was = share->frozen;
  __atomic_store_n(&share->frozen, 0, __ATOMIC_SEQ_CST);
  share->thaws++;
  snprintf(text, sizeof text, "{\"return\":%u}\n", was ? file_system_count : 0);
  reply(port, text);
}

static void answer(int port, const char *line) {
  char command[64], id[32], text[96];
  if (!value_of(line, "\"execute\"", command, sizeof command)) return;
  int delimited = !strcmp(command, "guest-sync-delimited");
  if (delimited || !strcmp(command, "guest-sync")) {
    if (!value_of(line, "\"id\"", id, sizeof id)) return;
    snprintf(text, sizeof text, "%s{\"return\":%s}\n", delimited ? "\xff" : "", id);
    reply(port, text);
  } else if (!strcmp(command, "guest-fsfreeze-freeze")) freeze(port);
  else if (!strcmp(command, "guest-fsfreeze-thaw")) thaw(port);
  else if (!strcmp(command, "guest-fsfreeze-status"))
    reply(port, share->frozen ? "{\"return\":\"frozen\"}\n" : "{\"return\":\"thawed\"}\n");
  else if (share->frozen)
    reply(port, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"the command is disabled: frozen\"}}\n");
  else if (!strcmp(command, "guest-get-time")) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(text, sizeof text, "{\"return\":%lld%09ld}\n", (long long)now.tv_sec, now.tv_nsec);
    reply(port, text);
  } else if (!strcmp(command, "guest-ping")) reply(port, "{\"return\":{}}\n");
  else if (!strcmp(command, "guest-info"))
    reply(port, "{\"return\":{\"version\":\"test\",\"supported_commands\":[]}}\n");
  else if (!strcmp(command, "guest-get-fsinfo")) reply(port, "{\"return\":[]}\n");
  else reply(port, "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"unknown command\"}}\n");
}

static int run_agent(void) {
  static char pending[4096];
  size_t length = 0;
  int port = -1;
  for (int attempt = 0; attempt < 20 && port < 0; attempt++) {
    port = open_named_port(AGENT_PORT);
    if (port < 0) usleep(10000);
  }
  share->open = 1;
  if (port < 0) return 1;
  for (;;) {
    struct pollfd waiting = {.fd = port, .events = POLLIN};
    if (poll(&waiting, 1, 100) <= 0 || !(waiting.revents & POLLIN) || share->deaf) {
      usleep(20000); /* deaf, nothing came, or nobody is connected: poll returns at once then */
      continue;
    }
    ssize_t got = read(port, pending + length, sizeof pending - 1 - length);
    if (got <= 0) {
      length = 0;
      usleep(20000);
      continue;
    }
    length += (size_t)got;
    for (char *end; (end = memchr(pending, '\n', length));) {
      *end = 0;
      answer(port, pending);
      length -= (size_t)(end + 1 - pending);
      memmove(pending, end + 1, length);
    }
    if (length == sizeof pending - 1) length = 0;
  }
}
