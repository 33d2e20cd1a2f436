/** How long the parent waits for each kind of call before it gives the child up, in milliseconds. */
export interface Deadlines {
  /** Questions. */
  readonly queryMs: number;
  /** Changes. libvirt waits 30 s for a machine's state-change lock, so not less than that. */
  readonly changeMs: number;
  /** libvirt gives QEMU 15 s after SIGTERM, then as much again after SIGKILL. */
  readonly powerOffMs: number;
  /** Writing or reading a memory state, where the caller names no deadline. A lost libvirtd ends it sooner. */
  readonly stateMs: number;
}

export const defaultDeadlines: Deadlines = {
  queryMs: 10_000,
  changeMs: 45_000,
  powerOffMs: 60_000,
  stateMs: 3_600_000,
};
