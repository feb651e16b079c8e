/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps that all programs share. The agent writes them; the programs write
 * only affinity. */
#pragma once

#include "types.h"

/* Every frontend. NodePorts stand under the unspecified address, once, and
 * count where the destination is in node_addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(max_entries, DEFAULT_FRONTENDS);
} frontends SEC(".maps");

/* The master entry of each Service port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct service);
	__uint(max_entries, DEFAULT_SERVICES);
} services SEC(".maps");

/* The endpoints of each Service port, generation by generation. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slot_key);
	__type(value, struct slot);
	__uint(max_entries, DEFAULT_SLOTS);
} slots SEC(".maps");

/* Client addresses that frontends with source ranges serve. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u8);
	__uint(max_entries, DEFAULT_SOURCES);
} sources SEC(".maps");

/* Which endpoint a client had last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
	__uint(max_entries, DEFAULT_AFFINITY);
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

/* Addresses of this node's pods, where they are told by address. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, __u8);
	__uint(max_entries, MAX_RANGES);
} pod_ranges SEC(".maps");

/* The ranges that ClusterIPs are allocated from. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, __u8);
	__uint(max_entries, MAX_RANGES);
} service_ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(max_entries, 1);
} settings SEC(".maps");
