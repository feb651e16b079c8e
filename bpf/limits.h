/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bounds of every loop, and sizes of maps that no flag sets. */
#pragma once

#define NSEC_PER_SEC 1000000000ULL

/* The master entry of a Service port is read again this often when an update
 * overtakes a lookup. Each read sees the newest state. */
#define MAX_SELECT_TRIES 3

/* Steps of the binary search for an endpoint: pools of up to 2^16 endpoints. In a
 * larger one a client that comes back may get another endpoint. */
#define MAX_SEARCH_STEPS 16

/* Different pools of one Service port. Half of them are free for a change of
 * policies: new pools are in place before the first frontend turns to them. */
#define MAX_POOLS 8

/* Size of a map that has a flag: the agent sets it before it loads the map. */
#define SIZE_BY_FLAG 1

/* Sizes that need no flag. */
#define MAX_NODE_ADDRESSES 4096
#define MAX_NAMESPACES 4096
#define MAX_STRANGERS 1024
#define MAX_CONNECTED 16384
#define MAX_GONE 4096

/* An unconnected UDP socket that was silent towards a Service for so long
 * chooses again, as conntrack forgets a two-way UDP flow. */
#define UDP_FLOW_IDLE_NS (120 * NSEC_PER_SEC)

/* How exactly the time of a UDP flow's last datagram is noted. */
#define UDP_FLOW_TICK_NS NSEC_PER_SEC
