/* A guest agent for tests: what libvirt needs of QEMU's own to freeze and thaw, with ways to misbehave. */
#ifndef AGENT_H
#define AGENT_H

/* Starts the agent in a process of its own, when the machine has its port; again after it has died. */
void agent_start(unsigned file_systems);
/* The writer must stand still between two rounds: until it says so, nothing is frozen. */
int agent_wants_frozen(void);
void agent_set_standing(int standing);
/* Obeys `agent-…`; 0 for a word that is not one of its own. */
int agent_obey(const char *word, unsigned number);
/* Opens a virtio-serial port by its name; -1 when the machine has none. */
int open_named_port(const char *port_name);

#endif
