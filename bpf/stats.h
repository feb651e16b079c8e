/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters. Go has a word for each (dataplane/ebpf/counters.go). Counters outlive an
 * agent in their pinned map, so new ones go to the end. */
#pragma once

#include "types.h"

enum stat {
	STAT_FORWARDED,     /* new connections or flows that got an endpoint */
	STAT_AFFINITY_FULL, /* an affinity could not be noted */
	STAT_CONNECT,       /* connect() to a Service, translated */
	STAT_SEND,          /* datagrams of unconnected sockets, translated */
	STAT_NOT_RECORDED,  /* sockets that could not be noted: they may see the endpoint's address */
	/* left to packets: */
	STAT_LEFT_EMPTY,     /* no endpoint */
	STAT_LEFT_OVERTAKEN, /* updates overtook the lookup MAX_SELECT_TRIES times */
	STAT_LEFT_BOUND,     /* the socket was bound to a port or an address */
	STAT_LEFT_AMBIGUOUS, /* an answer could not be told from another's */
};

#define MAX_STATS 64 /* room for more counters in the map that is pinned already */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_STATS);
} stats SEC(".maps");

static __always_inline void count(enum stat which)
{
	__u32 key = which;
	__u64 *n = bpf_map_lookup_elem(&stats, &key);

	if (n)
		(*n)++;
}
