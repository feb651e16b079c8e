/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the maps hold. Go writes these bytes: every structure has the same size and
 * no hidden padding on all machines. README.md says how Go gets the types. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "limits.h"

#define SAME_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type " has hidden padding")

/* An element may be recycled under a reader: then the kernel writes another one's
 * words over it, in whatever order, and another processor may see them in yet
 * another order. No barrier on the reader's side helps against that. So each value
 * has a sum of its key and of itself. A reader copies the value and compares the
 * sum of the copy: it is right in whatever order the words were written and read.
 * The compiler must not read the map again after the comparison: barrier(). */
enum sum {
	SUM_START = 0x53776974,
	SUM_FACTOR = 0x5bd1e995, /* odd, and an immediate of one instruction */
};

static __always_inline __u64 sum_add(__u64 sum, __u32 high, __u32 low)
{
	sum = (sum ^ ((__u64)high << 32 | low)) * SUM_FACTOR;
	return sum ^ sum >> 32;
}

/* One form for both families: IPv4 a.b.c.d is ::ffff:a.b.c.d. So there is one
 * set of maps and one code path. */
struct addr {
	__be32 w[4];
};
SAME_SIZE(struct addr, 16);

#define MAPPED_PREFIX bpf_htonl(0xffff)

/* Without branches on single words, here and below: the verifier walks through
 * what follows a branch once for each way. */
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

/* One half of an address as a number: the verifier walks through fewer branches
 * than with words. */
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

/* What a frontend's address means. It is in the key, so that no address that a
 * socket names can be taken for another kind. */
enum frontend_kind {
	FRONTEND_ADDRESS,  /* the address itself */
	FRONTEND_NODEPORT, /* each of node_addresses; addr tells the family alone */
};

/* Where clients connect to. */
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 kind; /* enum frontend_kind */
};
SAME_SIZE(struct frontend_key, 20);

/* The address of a's family under which NodePorts are. */
static __always_inline void addr_unspecified_like(struct addr *out, const struct addr *a)
{
	out->w[2] = addr_is_v4(a) ? MAPPED_PREFIX : 0;
	out->w[0] = 0;
	out->w[1] = 0;
	out->w[3] = 0;
}

struct frontend {
	__u32 check;   /* frontend_check */
	__u32 service; /* key of services */
	__u8 pool;     /* index of service.pools for clients from outside */
	__u8 inside;   /* and for this node and its pods */
	__u16 pad;
};
SAME_SIZE(struct frontend, 12);

static __always_inline __u32 frontend_check(const struct frontend_key *k, const struct frontend *f)
{
	__u64 sum = SUM_START;

	sum = sum_add(sum, k->addr.w[0], k->addr.w[1]);
	sum = sum_add(sum, k->addr.w[2], k->addr.w[3]);
	sum = sum_add(sum, (__u32)k->kind << 24 | (__u32)k->protocol << 16 | k->port, f->service);
	return sum_add(sum, f->pool, f->inside);
}

/* A pool is a run of slots, sorted by address and port. */
struct pool {
	__u32 first;
	__u32 count;
	__u32 check; /* pool_check */
};
SAME_SIZE(struct pool, 12);

/* The master entry of one Service port. To write it is what switches the port
 * from one generation of slots to the next, in one step. */
struct service {
	__u32 id;
	__u32 generation;
	__u32 affinity_s; /* seconds; 0: none */
	__u32 pad;
	struct pool pools[MAX_POOLS];
};
SAME_SIZE(struct service, 112);

static __always_inline __u32 pool_check(__u32 id, __u32 generation, __u32 affinity_s, const struct pool *p)
{
	__u64 sum = SUM_START;

	sum = sum_add(sum, id, generation);
	sum = sum_add(sum, affinity_s, p->first);
	return sum_add(sum, 0, p->count);
}

struct slot_key {
	__u32 service;
	__u32 generation;
	__u32 slot;
};
SAME_SIZE(struct slot_key, 12);

/* An address and port. */
struct place {
	struct addr addr;
	__be16 port;
	__u16 pad;
};
SAME_SIZE(struct place, 20);

/* One endpoint in one generation. */
struct slot {
	__u32 service;
	__u32 generation;
	struct place place;
	__u32 check; /* slot_check */
};
SAME_SIZE(struct slot, 32);

static __always_inline __u32 slot_check(const struct slot_key *k, const struct place *p)
{
	__u64 sum = SUM_START;

	sum = sum_add(sum, k->service, k->generation);
	sum = sum_add(sum, k->slot, p->port);
	sum = sum_add(sum, p->addr.w[0], p->addr.w[1]);
	return sum_add(sum, p->addr.w[2], p->addr.w[3]);
}

/* A client is its network namespace: its address is not chosen yet. */
struct affinity_key {
	__u64 netns; /* cookie */
	__u32 service;
	__u32 pad;
};
SAME_SIZE(struct affinity_key, 16);

struct affinity {
	__u64 used; /* CLOCK_MONOTONIC ns of its last new connection */
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 index; /* where in the pool it was: a hint */
};
SAME_SIZE(struct affinity, 32);

/* Flags of settings. */
enum flag {
	DETECTS_PODS_V4 = 1, /* this node can tell its pods (dataplane.LocalPods.Detects) */
	DETECTS_PODS_V6 = 2,
	HOLD_PODS = 4,       /* sockets of pods are left to packets for now */
	NODE_ONLY = 8,       /* sockets of pods are left to packets */
	ASK_NAMESPACES = 16, /* and those of namespaces that are not in namespaces as translated */
	TCP_ONLY = 32,       /* UDP is left to packets */
	STAND_ASIDE = 64,    /* everything is left to packets: the maps may be out of date */
};

/* What changes with the node and not with a Service. */
struct settings {
	enum flag flags;
	__u32 pad;
};
SAME_SIZE(struct settings, 8);

/* What is known of a network namespace (value of namespaces). */
enum namespace {
	NAMESPACE_TRANSLATED = 1, /* its sockets may be translated */
	NAMESPACE_LEFT = 2,       /* the agent looked: it translates its own connections */
};
SAME_SIZE(enum namespace, 4);

/* An endpoint of a Service port, by which its sockets are found. */
struct endpoint_key {
	__u32 service;
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
SAME_SIZE(struct endpoint_key, 24);

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

/* Flags of an unconnected UDP socket. */
enum udp_flag {
	UDP_BOUND = 1,      /* its program chose its port or address */
	UDP_DIRECT = 2,     /* it has sent what was not translated */
	UDP_TRANSLATED = 4, /* it has sent to a Service and was translated */
};

struct udp_socket {
	enum udp_flag flags;
};
SAME_SIZE(struct udp_socket, 4);

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
