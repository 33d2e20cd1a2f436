/*
 * The whole user space of the test guest: process 1 of its initramfs.
 *
 * It loads the virtio modules, scans every virtio disk, and then writes stamped blocks for ever: sequence
 * number n goes to vda, then to vdb, and so on, each write completed (O_DIRECT | O_DSYNC) before the next.
 * The last completed number of every disk is kept in memory. At any instant the disks therefore differ from
 * memory, and from each other, by at most one: that is what point-in-time tests compare.
 *
 * Layout of a disk (test/lab/guestDisk.ts reads the same): a ring of 4 KiB blocks from 1 MiB on; sequence n
 * stands in block n % ringBlocks. Commands come in lines over a virtio-serial port; see test/lab/README.md.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define RING_START (1024u * 1024u)
#define MAX_DISKS 8
#define PAGE 4096u
#define PORT_NAME "writer.0"
#define SCAN_BLOCKS 256u

static const char magic[8] = {'S', 'P', 'B', 'L', 'O', 'C', 'K', '1'};

/* Little endian, as the host's reader takes it. The checksum covers the block with this field set to 0. */
struct stamp {
  char magic[8];
  uint64_t run_id;
  uint64_t sequence;
  uint64_t first_sequence; /* first one of this run */
  uint64_t wall_ns;
  uint32_t disk;
  uint32_t block;
  uint32_t ring_blocks;
  uint32_t checksum;
};

struct disk {
  int fd;
  char name[8];
  uint32_t ring_blocks;
  uint64_t sequence; /* last completed; held in memory only */
};

static struct disk disks[MAX_DISKS];
static unsigned disk_count;
static uint64_t run_id, first_sequence, next_sequence, write_errors;
static unsigned rate = 200; /* rounds per second; 0 is as fast as possible */
static unsigned region_mib = 16;
static unsigned expected_disks = 1;
static int paused;
static int port = -1;
static uint8_t *filled;
static uint64_t filled_bytes, dirty_offset;
static unsigned dirty_mib_per_second;
static uint8_t *block_buffer, *scan_buffer;
static uint32_t crc_table[256];

static uint64_t now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void say(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("writer: ");
  vprintf(format, arguments);
  printf("\n");
  fflush(stdout);
  va_end(arguments);
}

static void die(const char *what) {
  say("FATAL %s: %s", what, strerror(errno));
  sleep(1);
  reboot(RB_POWER_OFF);
  for (;;) pause();
}

/* CRC-32 as in zlib, so that the host checks it with zlib.crc32. */
static void crc_init(void) {
  for (uint32_t n = 0; n < 256; n++) {
    uint32_t c = n;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    crc_table[n] = c;
  }
}

static uint32_t crc(const uint8_t *data, size_t length) {
  uint32_t c = 0xffffffffu;
  while (length--) c = crc_table[(c ^ *data++) & 0xff] ^ (c >> 8);
  return c ^ 0xffffffffu;
}

static uint64_t mix(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

/* A block as `sequence` writes it. The rest is incompressible and differs in every block. */
static void make_block(uint8_t *out, const struct disk *disk, uint32_t index, uint64_t sequence) {
  uint64_t state = (run_id ^ (sequence * 0x9e3779b97f4a7c15ull) ^ ((uint64_t)index << 56)) | 1;
  struct stamp stamp = {.run_id = run_id,
                        .sequence = sequence,
                        .first_sequence = first_sequence,
                        .wall_ns = now_ns(CLOCK_REALTIME),
                        .disk = index,
                        .block = (uint32_t)(sequence % disk->ring_blocks),
                        .ring_blocks = disk->ring_blocks};
  memcpy(stamp.magic, magic, sizeof magic);
  for (size_t i = sizeof stamp; i < BLOCK; i += sizeof state) {
    uint64_t word = mix(&state);
    memcpy(out + i, &word, sizeof word);
  }
  memcpy(out, &stamp, sizeof stamp);
  stamp.checksum = crc(out, BLOCK);
  memcpy(out, &stamp, sizeof stamp);
}

/* 1: a whole block of ours, 0: not ours (never written), -1: ours but torn. */
static int read_stamp(uint8_t *block, struct stamp *stamp) {
  memcpy(stamp, block, sizeof *stamp);
  if (memcmp(stamp->magic, magic, sizeof magic) != 0) return 0;
  uint32_t expected = stamp->checksum;
  stamp->checksum = 0;
  memcpy(block, stamp, sizeof *stamp);
  return crc(block, BLOCK) == expected ? 1 : -1;
}

static int read_number_file(const char *path) {
  char text[32] = "";
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  return length > 0 ? atoi(text) : -1;
}

/* --- start ------------------------------------------------------------------------------------------- */

static void load_modules(void) {
  FILE *list = fopen("/modules/order", "r");
  char name[128], path[160];
  if (!list) die("/modules/order");
  while (fscanf(list, "%127s", name) == 1) {
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) die(path);
    close(fd);
  }
  fclose(list);
}

static void read_options(void) {
  char line[2048] = "";
  int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, line, sizeof line - 1) < 0) die("/proc/cmdline");
  close(fd);
  for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
    if (sscanf(word, "sp.rate=%u", &rate) == 1) continue;
    if (sscanf(word, "sp.region=%u", &region_mib) == 1) continue;
    if (sscanf(word, "sp.disks=%u", &expected_disks) == 1) continue;
    if (sscanf(word, "sp.paused=%d", &paused) == 1) continue;
  }
}

static int open_disks(void) {
  disk_count = 0;
  for (char letter = 'a'; letter < 'a' + MAX_DISKS; letter++) {
    char path[64];
    struct disk *disk = &disks[disk_count];
    snprintf(path, sizeof path, "/sys/block/vd%c/ro", letter);
    if (read_number_file(path) != 0) continue;
    snprintf(path, sizeof path, "/dev/vd%c", letter);
    disk->fd = open(path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (disk->fd < 0) continue;
    off_t size = lseek(disk->fd, 0, SEEK_END);
    uint64_t ring = (uint64_t)region_mib * 1024 * 1024;
    if (size < (off_t)(RING_START + BLOCK)) die(path);
    if (ring > (uint64_t)size - RING_START) ring = (uint64_t)size - RING_START;
    disk->ring_blocks = (uint32_t)(ring / BLOCK);
    snprintf(disk->name, sizeof disk->name, "vd%c", letter);
    disk_count++;
  }
  return disk_count >= expected_disks;
}

static void close_disks(void) {
  for (unsigned i = 0; i < disk_count; i++) close(disks[i].fd);
}

static void wait_for_disks(void) {
  for (int attempt = 0; !open_disks(); attempt++) {
    if (attempt == 500) die("not all disks appeared");
    close_disks();
    usleep(10000);
  }
}

static ssize_t read_ring(const struct disk *disk, uint32_t from_block) {
  uint32_t blocks = disk->ring_blocks - from_block;
  if (blocks > SCAN_BLOCKS) blocks = SCAN_BLOCKS;
  ssize_t length = pread(disk->fd, scan_buffer, (size_t)blocks * BLOCK, RING_START + (off_t)from_block * BLOCK);
  return length < 0 ? -1 : length / (ssize_t)BLOCK;
}

/* Highest sequence of an earlier run on any disk; a cold boot goes on from there with a new run id. */
static uint64_t scan_highest(void) {
  uint64_t highest = 0;
  for (unsigned i = 0; i < disk_count; i++) {
    for (uint32_t block = 0; block < disks[i].ring_blocks;) {
      ssize_t got = read_ring(&disks[i], block);
      if (got <= 0) die("scan");
      for (ssize_t k = 0; k < got; k++) {
        struct stamp stamp;
        if (read_stamp(scan_buffer + (size_t)k * BLOCK, &stamp) == 1 && stamp.sequence > highest)
          highest = stamp.sequence;
      }
      block += (uint32_t)got;
    }
  }
  return highest;
}

/* The wall clock is mixed in because a guest that has just booted has little entropy. */
static void choose_run_id(void) {
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, GRND_INSECURE) != (ssize_t)sizeof random) random = 0;
  uint64_t state = (random ^ now_ns(CLOCK_REALTIME) ^ (now_ns(CLOCK_MONOTONIC) << 20)) | 1;
  mix(&state);
  run_id = mix(&state);
}

/* --- work -------------------------------------------------------------------------------------------- */

static void write_round(void) {
  uint64_t sequence = next_sequence++;
  for (unsigned i = 0; i < disk_count; i++) {
    struct disk *disk = &disks[i];
    make_block(block_buffer, disk, i, sequence);
    off_t offset = RING_START + (off_t)(sequence % disk->ring_blocks) * BLOCK;
    if (pwrite(disk->fd, block_buffer, BLOCK, offset) == (ssize_t)BLOCK) {
      disk->sequence = sequence;
    } else {
      write_errors++;
      say("write error on %s at sequence %llu: %s", disk->name, (unsigned long long)sequence, strerror(errno));
    }
  }
}

static void dirty_memory(uint64_t bytes) {
  if (!filled_bytes) return;
  for (uint64_t done = 0; done < bytes; done += PAGE) {
    filled[dirty_offset] ^= (uint8_t)(1 + next_sequence);
    dirty_offset = (dirty_offset + PAGE) % filled_bytes;
  }
}

static int fill_memory(unsigned mib) {
  free(filled);
  filled = NULL;
  filled_bytes = dirty_offset = 0;
  if (mib == 0) return 1;
  uint64_t bytes = (uint64_t)mib * 1024 * 1024;
  filled = malloc(bytes);
  if (!filled) return 0;
  uint64_t state = run_id | 1;
  for (uint64_t i = 0; i < bytes; i += sizeof state) {
    uint64_t word = mix(&state);
    memcpy(filled + i, &word, sizeof word);
  }
  filled_bytes = bytes;
  return 1;
}

/* --- commands ---------------------------------------------------------------------------------------- */

static void answer(const char *format, ...) {
  static char line[4096];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  line[length++] = '\n';
  for (int done = 0, tries = 0; done < length && tries < 1000; tries++) {
    ssize_t wrote = write(port, line + done, (size_t)(length - done));
    if (wrote > 0) done += (int)wrote;
    else usleep(1000); /* nobody connected, or the port is full: give up after a second */
  }
}

static void answer_status(const char *id) {
  char list[512] = "";
  size_t used = 0;
  for (unsigned i = 0; i < disk_count; i++)
    used += (size_t)snprintf(list + used, sizeof list - used, "%s{\"target\":\"%s\",\"sequence\":%llu,\"ringBlocks\":%u}",
                             i ? "," : "", disks[i].name, (unsigned long long)disks[i].sequence, disks[i].ring_blocks);
  answer("%s {\"runId\":\"%016llx\",\"firstSequence\":%llu,\"sequence\":%llu,\"disks\":[%s],\"paused\":%s,"
         "\"frozen\":%s,\"rate\":%u,\"writeErrors\":%llu,\"uptimeMs\":%llu,\"wallMs\":%llu,\"filledMiB\":%llu}",
         id, (unsigned long long)run_id, (unsigned long long)first_sequence,
         (unsigned long long)(next_sequence - 1), list, paused ? "true" : "false",
         agent_wants_frozen() ? "true" : "false", rate,
         (unsigned long long)write_errors, (unsigned long long)(now_ns(CLOCK_BOOTTIME) / 1000000),
         (unsigned long long)(now_ns(CLOCK_REALTIME) / 1000000), (unsigned long long)(filled_bytes >> 20));
}

/* Reads every ring back and compares it with what memory says must stand there. */
static void answer_verify(const char *id) {
  uint64_t checked = 0, missing = 0, torn = 0, newer = 0, errors = 0;
  for (unsigned i = 0; i < disk_count; i++) {
    struct disk *disk = &disks[i];
    for (uint32_t block = 0; block < disk->ring_blocks;) {
      ssize_t got = read_ring(disk, block);
      if (got <= 0) {
        errors++;
        break;
      }
      for (ssize_t k = 0; k < got; k++, block++) {
        /* the newest sequence up to the one in memory that falls on this block */
        uint64_t back = (disk->sequence % disk->ring_blocks + disk->ring_blocks - block) % disk->ring_blocks;
        struct stamp stamp;
        int state = read_stamp(scan_buffer + (size_t)k * BLOCK, &stamp);
        if (state < 0) torn++;
        if (state > 0 && stamp.sequence > disk->sequence) newer++;
        if (back > disk->sequence || disk->sequence - back < first_sequence) continue;
        checked++;
        if (state != 1 || stamp.sequence != disk->sequence - back || stamp.run_id != run_id || stamp.disk != i) missing++;
      }
    }
  }
  answer("%s {\"runId\":\"%016llx\",\"sequence\":%llu,\"checked\":%llu,\"missing\":%llu,\"torn\":%llu,\"newer\":%llu,"
         "\"readErrors\":%llu}",
         id, (unsigned long long)run_id, (unsigned long long)(next_sequence - 1), (unsigned long long)checked,
         (unsigned long long)missing, (unsigned long long)torn, (unsigned long long)newer, (unsigned long long)errors);
}

/* One line: an id that the answer repeats, a word, perhaps a number. */
static void obey(char *line) {
  char id[32] = "", word[32] = "";
  unsigned number = 0;
  int words = sscanf(line, "%31s %31s %u", id, word, &number);
  if (words < 2) return;
  if (!strcmp(word, "status")) answer_status(id);
  else if (!strcmp(word, "verify")) answer_verify(id);
  else if (!strcmp(word, "pause")) paused = 1, answer_status(id);
  else if (!strcmp(word, "step")) write_round(), answer_status(id);
  else if (!strcmp(word, "go")) paused = 0, answer_status(id);
  else if (!strcmp(word, "rate") && words == 3) rate = number, answer_status(id);
  else if (!strcmp(word, "dirty") && words == 3) dirty_mib_per_second = number, answer_status(id);
  else if (!strcmp(word, "fill") && words == 3) {
    if (fill_memory(number)) answer_status(id);
    else answer("%s {\"error\":\"not enough memory\"}", id);
  } else if (!strcmp(word, "sync")) sync(), answer_status(id);
  else if (!strcmp(word, "poweroff")) answer_status(id), sync(), reboot(RB_POWER_OFF);
  else if (agent_obey(word, number)) answer_status(id);
  else answer("%s {\"error\":\"unknown command\"}", id);
}

/* The port is found by its name: the machine may have others, such as the guest agent's. */
int open_named_port(const char *port_name) {
  DIR *ports = opendir("/sys/class/virtio-ports");
  int found = -1;
  if (!ports) return -1;
  for (struct dirent *entry; found < 0 && (entry = readdir(ports));) {
    char path[320], name[64] = "";
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    ssize_t length = read(fd, name, sizeof name - 1);
    if (length > 0) name[strcspn(name, "\n")] = 0;
    if (length > 0 && !strcmp(name, port_name)) {
      snprintf(path, sizeof path, "/dev/%s", entry->d_name);
      found = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    close(fd);
  }
  closedir(ports);
  return found;
}

static void open_port(void) {
  for (int attempt = 0; attempt < 500; attempt++) {
    port = open_named_port(PORT_NAME);
    if (port >= 0) return;
    usleep(10000);
  }
  say("no command port");
}

/* Waits until `until_ns` (monotonic) at the latest, and obeys what has come in. */
static void serve_commands(uint64_t until_ns) {
  static char pending[256];
  static size_t length;
  uint64_t now = now_ns(CLOCK_MONOTONIC);
  int wait_ms = until_ns > now ? (int)((until_ns - now) / 1000000) : 0;
  if (wait_ms > 20) wait_ms = 20;
  struct pollfd waiting = {.fd = port, .events = POLLIN};
  int ready = port >= 0 ? poll(&waiting, 1, wait_ms) : 0;
  if (port < 0 || (ready > 0 && !(waiting.revents & POLLIN))) {
    usleep((useconds_t)wait_ms * 1000); /* nobody is connected: poll returns at once */
    return;
  }
  if (ready <= 0) return;
  ssize_t got = read(port, pending + length, sizeof pending - 1 - length);
  if (got <= 0) {
    length = 0; /* the other side hung up */
    usleep((useconds_t)wait_ms * 1000);
    return;
  }
  length += (size_t)got;
  for (char *end; (end = memchr(pending, '\n', length));) {
    *end = 0;
    obey(pending);
    length -= (size_t)(end + 1 - pending);
    memmove(pending, end + 1, length);
  }
  if (length == sizeof pending - 1) length = 0;
}

int main(void) {
  mkdir("/dev", 0755), mkdir("/proc", 0755), mkdir("/sys", 0755);
  if (mount("dev", "/dev", "devtmpfs", 0, "") != 0 && errno != EBUSY) die("/dev");
  if (mount("proc", "/proc", "proc", 0, "") != 0) die("/proc");
  if (mount("sys", "/sys", "sysfs", 0, "") != 0) die("/sys");
  crc_init();
  if (posix_memalign((void **)&block_buffer, BLOCK, BLOCK) != 0) die("memory");
  if (posix_memalign((void **)&scan_buffer, BLOCK, SCAN_BLOCKS * BLOCK) != 0) die("memory");
  read_options();
  load_modules();
  wait_for_disks();
  choose_run_id();
  first_sequence = next_sequence = scan_highest() + 1;
  for (unsigned i = 0; i < disk_count; i++) disks[i].sequence = first_sequence - 1;
  open_port();
  agent_start(disk_count);
  say("run %016llx writes to %u disks from sequence %llu on", (unsigned long long)run_id, disk_count,
      (unsigned long long)first_sequence);

  uint64_t due = now_ns(CLOCK_MONOTONIC), last = due;
  for (;;) {
    serve_commands(due);
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    if (now < due) continue;
    if (dirty_mib_per_second) dirty_memory((now - last) * dirty_mib_per_second / 1000 * 1048576 / 1000000);
    last = now;
    int frozen = agent_wants_frozen();
    agent_set_standing(frozen);
    if (!paused && !frozen) write_round();
    /* a late round is not made up for: the pace is a limit */
    due = now + 1000000000ull / (rate ? rate : 1000000);
    if ((paused || frozen) && due < now + 10000000ull) due = now + 10000000ull;
  }
}
