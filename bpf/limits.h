/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bounds of every loop, and sizes of maps that no flag sets. */
#pragma once

/* The master entry of a Service port is read again this often when an update
 * overtakes a lookup. Each read sees the newest state. */
#define MAX_SELECT_TRIES 3

/* Steps of the binary search for an endpoint: pools of up to 2^16 endpoints. In a
 * larger one a client that comes back may get another endpoint.
 */
#define MAX_SEARCH_STEPS 16

/* Different pools of one Service port. Half of them are free for a change of
 * policies: new pools are in place before the first frontend turns to them. */
#define MAX_POOLS 8

/* Default sizes of maps; the flags of the agent replace them at load time. */
#define DEFAULT_FRONTENDS 131072
#define DEFAULT_SERVICES 131072
#define DEFAULT_SLOTS 1048576
#define DEFAULT_SOURCES 65536
#define DEFAULT_AFFINITY 65536
#define DEFAULT_UDP_FLOWS 65536

/* Sizes that need no flag. */
#define MAX_NODE_ADDRESSES 4096
#define MAX_RANGES 4096

/* An unconnected UDP socket that was silent towards a Service for so long
 * chooses again, as conntrack forgets a two-way UDP flow. */
#define UDP_FLOW_IDLE_NS (120ULL * 1000000000ULL)

/* packet.c */

/* IPv6 extension headers before the transport header. */
#define MAX_EXTENSION_HEADERS 6

/* The usual range of NodePorts: no connection is masqueraded with a port of it. A
 * pod's UDP answer to such a port would look like a request to the NodePort.
 */
#define NODE_PORTS_FIRST 30000
#define NODE_PORTS 2768

/* Source ports tried for a connection whose own one is taken: at first only
 * free ones, then also those of connections that have ended.
 */
#define MAX_FREE_PORT_TRIES 6
#define MAX_PORT_TRIES 16

/* Entries of the connection table, 2 to 4 of them a connection. */
#define DEFAULT_CONNECTIONS 1048576

/* Datagrams in fragments at a time. */
#define MAX_FRAGMENTED 8192

#define MAX_DEVICES 16384

/* What every way takes: nobody asks whether such a packet fits. */
#define SMALL_PACKET 576

/* ICMP errors that each processor may send: at a time, and how long until one more. */
#define MAX_ERRORS 1000
#define ERROR_INTERVAL_NS 100000ULL

/* How exactly the time of a UDP flow's last datagram is noted. */
#define UDP_FLOW_TICK_NS 1000000000ULL
