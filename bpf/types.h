/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the maps hold. Go writes these bytes (dataplane/ebpf/layout.go): every
 * structure has the same size and no hidden padding on all machines. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "limits.h"

#define SAME_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type " has hidden padding")

/* Reads once what another processor may write: the compiler must neither
 * repeat nor merge such reads. */
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

/* One form for both families: IPv4 a.b.c.d is ::ffff:a.b.c.d. So there is one
 * set of maps and one code path. */
struct addr {
	__be32 w[4];
};
SAME_SIZE(struct addr, 16);

#define MAPPED_PREFIX bpf_htonl(0xffff)

/* Without branches on single words, here and below: the verifier walks through
 * what follows a branch once for each way.
 */
static __always_inline bool addr_is_v4(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | (a->w[2] ^ MAPPED_PREFIX));
}

static __always_inline void addr_from_v4(struct addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = MAPPED_PREFIX;
	a->w[3] = v4;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3]));
}

/* addr_half is one half of an address as a number: the verifier walks through
 * fewer branches than with words.
 */
static __always_inline __u64 addr_half(const struct addr *a, int half)
{
	return (__u64)bpf_ntohl(a->w[2 * half]) << 32 | bpf_ntohl(a->w[2 * half + 1]);
}

/* In the order of Go's netip.Addr.Compare within a family. */
static __always_inline int addr_compare(const struct addr *a, const struct addr *b)
{
	__u64 x = addr_half(a, 0), y = addr_half(b, 0);

	if (x == y) {
		x = addr_half(a, 1);
		y = addr_half(b, 1);
	}
	return x < y ? -1 : x > y;
}

/* 127.0.0.0/8 or ::1. */
static __always_inline bool addr_is_loopback(const struct addr *a)
{
	if (addr_is_v4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(a->w[0] | a->w[1] | a->w[2] | (a->w[3] ^ bpf_htonl(1)));
}

/* The unspecified address of a's family: where NodePort frontends stand. */
static __always_inline void addr_unspecified_like(struct addr *out, const struct addr *a)
{
	out->w[2] = addr_is_v4(a) ? MAPPED_PREFIX : 0;
	out->w[0] = 0;
	out->w[1] = 0;
	out->w[3] = 0;
}

/* Where clients connect to. With port 0 and protocol 0 it marks the address of
 * a ClusterIP, whose other ports are rejected. */
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
SAME_SIZE(struct frontend_key, 20);

/* Whose source address is masqueraded (dataplane.SNAT). */
enum snat {
	SNAT_NONE,
	SNAT_NON_PODS,
	SNAT_NODE,
	SNAT_ALL,
};

/* flags of a frontend */
#define FRONTEND_MARK 1 /* no frontend: the address belongs to a ClusterIP */
#define FRONTEND_CLUSTER_IP 2

struct frontend {
	__u32 check;   /* frontend_check of its key: tells a recycled element */
	__u32 service; /* key of services */
	__u32 sources; /* number of its source ranges in sources; 0: anyone */
	__u8 pool;     /* index of service.pools for clients from outside */
	__u8 inside;   /* and for this node and its pods */
	__u8 snat;     /* enum snat */
	__u8 flags;
};
SAME_SIZE(struct frontend, 16);

static __always_inline __u32 frontend_check(const struct frontend_key *k)
{
	return k->addr.w[0] ^ k->addr.w[1] ^ k->addr.w[2] ^ k->addr.w[3] ^ ((__u32)k->protocol << 16 | k->port);
}

/* A pool is a run of slots, sorted by address and port. */
struct pool {
	__u32 first;
	__u32 count;
};
SAME_SIZE(struct pool, 8);

/* What becomes of a new connection to an empty pool (dataplane.Verdict). */
#define IF_EMPTY_REJECT 0
#define IF_EMPTY_DROP 1

/* The master entry of one Service port. To write it is what switches the port
 * from one generation of slots to the next, in one step. id comes first and is
 * compared after reading: an element may be recycled under a reader. */
struct service {
	__u32 id;
	__u32 generation;
	__u32 affinity_s; /* seconds; 0: none */
	__u32 pad;
	__u8 if_empty[MAX_POOLS];
	struct pool pools[MAX_POOLS];
};
SAME_SIZE(struct service, 88);

struct slot_key {
	__u32 service;
	__u32 generation;
	__u32 slot;
};
SAME_SIZE(struct slot_key, 12);

/* flags of an endpoint */
#define ENDPOINT_LOCAL 1 /* on this node */

/* One endpoint in one generation. It repeats service and generation because an
 * element may be recycled under a reader. */
struct slot {
	__u32 service;
	__u32 generation;
	struct addr addr;
	__be16 port;
	__u8 flags;
	__u8 pad;
};
SAME_SIZE(struct slot, 28);

/* Keys of longest-prefix maps: the length counts the bits of all that follows it. */
struct range_key {
	__u32 bits;
	struct addr addr;
};
SAME_SIZE(struct range_key, 20);

struct source_key {
	__u32 bits; /* 64 and more */
	__u32 service;
	__u32 sources;
	struct addr addr;
};
SAME_SIZE(struct source_key, 28);

/* A client: its address, or (client_of_netns) its network namespace where the
 * address is not chosen yet. */
struct affinity_key {
	struct addr client;
	__u32 service;
};
SAME_SIZE(struct affinity_key, 20);

struct affinity {
	__u64 used; /* CLOCK_MONOTONIC ns of its last new connection */
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 index; /* where in the pool it was: a hint */
};
SAME_SIZE(struct affinity, 32);

/* A network namespace as a client. No client address starts with ff: that is
 * IPv6 multicast. */
static __always_inline void client_of_netns(struct addr *a, __u64 cookie)
{
	a->w[0] = bpf_htonl(0xff000000);
	a->w[1] = 0;
	a->w[2] = (__u32)(cookie >> 32);
	a->w[3] = (__u32)cookie;
}

/* flags of settings */
#define DETECTS_PODS_V4 1 /* this node can tell its pods (dataplane.LocalPods.Detects) */
#define DETECTS_PODS_V6 2
#define PACKETS_BEGIN 4 /* every device has its programs: packets may begin connections */
#define HOLD_PODS 8 /* sockets of pods are left to the packet path for now */

/* What changes with the node and not with a Service. */
struct settings {
	__u32 flags;
	__u32 pad;
};
SAME_SIZE(struct settings, 8);

/* What a socket that connected to a Service asked for and got. */
struct peer {
	struct addr frontend;
	struct addr endpoint;
	__be16 frontend_port;
	__be16 endpoint_port;
	__u32 service;
	__u8 protocol;
	__u8 pad[7];
};
SAME_SIZE(struct peer, 48);

/* A destination of one unconnected UDP socket. */
struct udp_flow_key {
	__u64 cookie; /* of the socket */
	struct addr addr;
	__be16 port;
	__u16 pad[3];
};
SAME_SIZE(struct udp_flow_key, 32);

/* For a Service's address: the endpoint that its datagrams go to. For an
 * endpoint's: the Service's address that its answers carry. */
struct udp_flow {
	__u64 used; /* CLOCK_MONOTONIC ns, to UDP_FLOW_TICK_NS */
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 index; /* of the endpoint in its pool: a hint */
};
SAME_SIZE(struct udp_flow, 32);
