/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps that tell of Services and of this node. The agent writes them; the
 * programs write only affinity and strangers. */
#pragma once

#include "types.h"

/* Every frontend. A NodePort has one element a family, and counts where the
 * destination is in node_addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(max_entries, SIZE_BY_FLAG);
} frontends SEC(".maps");

/* The master entry of each Service port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct service);
	__uint(max_entries, SIZE_BY_FLAG);
} services SEC(".maps");

/* The endpoints of each Service port, generation by generation. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slot_key);
	__type(value, struct slot);
	__uint(max_entries, SIZE_BY_FLAG);
} slots SEC(".maps");

/* Which endpoint a client had last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
	__uint(max_entries, SIZE_BY_FLAG);
} affinity SEC(".maps");

/* Addresses of this node where NodePorts answer; 127.0.0.0 stands for all of
 * 127.0.0.0/8. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, __u8);
	__uint(max_entries, MAX_NODE_ADDRESSES);
} node_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(max_entries, 1);
} settings SEC(".maps");

/* Network namespaces of pods that the agent has looked into, by cookie. One that
 * is not here is left to packets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, enum namespace);
	__uint(max_entries, MAX_NAMESPACES);
} namespaces SEC(".maps");

/* Those that were met and are not there: the agent looks for them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64);
	__type(value, __u32);
	__uint(max_entries, MAX_STRANGERS);
} strangers SEC(".maps");
