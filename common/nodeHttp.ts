/**
 * Node's own HTTP and HTTPS. An import of these modules takes a look at all that they export, and thereby loads what is
 * made for browsers (`WebSocket` and its like): 2 MiB in a service that has no use for it.
 */
export const http = process.getBuiltinModule('node:http');
export const https = process.getBuiltinModule('node:https');
