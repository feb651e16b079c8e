/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters with words. Go has the names in the same order
 * (dataplane/ebpf/counters.go); new ones go to the end. */
#pragma once

#include "types.h"

enum stat {
	/* every program */
	STAT_FORWARDED,           /* new connections or flows that got an endpoint */
	STAT_REJECTED_EMPTY,      /* no endpoint, and the Service rejects */
	STAT_DROPPED_EMPTY,       /* no endpoint, and the policy drops */
	STAT_DROPPED_SOURCE,      /* client outside the Service's source ranges */
	STAT_REJECTED_PORT,       /* a port that the ClusterIP does not have */
	STAT_DROPPED_UNALLOCATED, /* an address of the Service ranges that no Service has */
	STAT_DROPPED_OVERTAKEN,   /* updates overtook the lookup MAX_SELECT_TRIES times */
	STAT_AFFINITY_FULL,       /* an affinity could not be noted */
	/* sock.c */
	STAT_SOCK_CONNECT,      /* connect() to a Service, translated */
	STAT_SOCK_SEND,         /* datagrams of unconnected sockets, translated */
	STAT_SOCK_LEFT,         /* left to the packet path: source ranges, drops */
	STAT_SOCK_NOT_RECORDED, /* sockets that could not be noted: they may see the endpoint's address */
	/* packet.c: from here on */
	STAT_PACKET_BAD,             /* cut short or malformed: left to the stack */
	STAT_PACKET_UNKNOWN,         /* to a Service, in mid-flow, of no known connection: left to the stack */
	STAT_PACKET_FRAGMENT_LOST,   /* a later fragment to a Service whose first one was not seen: dropped */
	STAT_PACKET_FRAGMENT_SCTP,   /* SCTP in fragments: its checksum cannot be kept right: dropped */
	STAT_PACKET_CONNECTIONS_FULL, /* a new connection found the connection table full: dropped */
	STAT_PACKET_PORTS_TAKEN,     /* no free source port in MAX_PORT_TRIES tries: dropped */
	STAT_PACKET_NO_ADDRESS,      /* no address of the node to masquerade with: dropped */
	STAT_PACKET_NO_ROUTE,        /* this node's packet to an endpoint that it has no route to: dropped */
	STAT_PACKET_WRITE_FAILED,    /* the packet could not be written: dropped */
	STAT_PACKET_ERRORS_LIMITED,  /* rejected in silence: too many ICMP errors */
	STAT_PACKET_TRANSLATED,      /* packets translated */
	STAT_PACKET_MASQUERADED,     /* connections whose source address was translated */
	STAT_PACKET_ERROR_TRANSLATED, /* ICMP errors translated */
	STAT_PACKET_NOT_ADDED,       /* the kernel had no memory, or no lock in time, for an entry of the connection table: dropped */

	STAT_COUNT = 64,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, STAT_COUNT);
} stats SEC(".maps");

static __always_inline void count(enum stat which)
{
	__u32 key = which;
	__u64 *n = bpf_map_lookup_elem(&stats, &key);

	if (n)
		(*n)++;
}
