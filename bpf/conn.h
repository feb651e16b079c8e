/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The connection table: what the packets of each connection become.
 *
 * A packet passes a translated connection in two steps, as with netfilter: the
 * destination is translated where it comes in, the source where it goes out.
 * In between the stack routes, filters and tracks an ordinary flow from client
 * to endpoint. So there are up to four entries, each under the tuple that its
 * hook sees:
 *
 *	                at ingress          in the stack          at egress
 *	client's:   client -> frontend  =>  client -> endpoint  =>  node -> endpoint
 *	answers:  frontend -> client   <=  endpoint -> client  <=  endpoint -> node
 *
 * The outer step of either line is there only where the source is masqueraded.
 * Connections of the node itself pass no routing between two hooks, and so are
 * translated in one step with two entries: the node's packets at egress, the
 * answers at ingress (or at egress of lo where the endpoint is the node).
 */
#pragma once

#include "maps.h"
#include "stats.h"

/* Where a tuple is seen. */
enum stage {
	STAGE_IN,  /* at ingress of a device */
	STAGE_OUT, /* at egress */
};

struct tuple {
	struct addr src, dst;
	__be16 sport, dport;
	__u8 protocol;
	__u8 stage; /* enum stage */
	__u8 pad[2];
};
SAME_SIZE(struct tuple, 40);

/* flags of an entry */
#define CONN_PRIMARY 1    /* of the client's packets; the other entries live as long as this one */
#define CONN_NODE 2       /* primary of a connection that the node opened */
#define CONN_SELF 4       /* with CONN_NODE: the endpoint is on the node itself, answers are seen at egress */
#define CONN_MASQUERADE 8 /* the source is to be masqueraded by the first packet that goes out */
#define CONN_INJECT 16    /* answers go to the stack as if they came in by ifindex */
#define CONN_TAGGED 32    /* only for packets that this node translated at ingress */

/* ends: what was seen of the end of this direction */
#define CONN_FIN 1
#define CONN_RESET 2

struct conn {
	struct addr src, dst; /* what the packet becomes */
	__be16 sport, dport;
	__u8 flags;
	__u8 ends;
	__u16 pad;
	__u32 ifindex;    /* device where the first packet was seen */
	__u32 service;    /* of a primary entry */
	__u32 generation; /* of the Service port when the endpoint was last found in it */
	__u32 pad2;
	__u64 seen; /* CLOCK_MONOTONIC ns of the last packet, to a second; 0: none yet */
};
SAME_SIZE(struct conn, 64);

/* Not LRU: a full table refuses new connections and says so, and never forgets
 * one that stands. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tuple);
	__type(value, struct conn);
	__uint(max_entries, DEFAULT_CONNECTIONS);
} connections SEC(".maps");

/* The ports of datagrams in fragments; only the first fragment has them. */
struct fragment_key {
	struct addr src, dst;
	__be32 id;
	__u8 protocol;
	__u8 pad[3];
};
SAME_SIZE(struct fragment_key, 40);

struct fragment_ports {
	__be16 sport, dport;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment_ports);
	__uint(max_entries, MAX_FRAGMENTED);
} fragments SEC(".maps");

/* flags of a device */
#define DEVICE_PODS 1  /* leads to pods of this node */
#define DEVICE_NO_MAC 2 /* packets have no link layer header */

/* What the agent knows of a device. */
struct device {
	struct addr v4, v6; /* source of masqueraded packets; unspecified: none */
	__u8 mac[6];
	__u8 flags;
	__u8 pad;
};
SAME_SIZE(struct device, 40);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
	__uint(max_entries, MAX_DEVICES);
} devices SEC(".maps");

/* reversed is the tuple of answers to packets of t, as a stage sees them. */
static __always_inline void reversed(struct tuple *to, const struct tuple *t, __u8 stage)
{
	to->src = t->dst;
	to->dst = t->src;
	to->sport = t->dport;
	to->dport = t->sport;
	to->protocol = t->protocol;
	to->stage = stage;
	to->pad[0] = 0;
	to->pad[1] = 0;
}

/* becomes is the tuple that a packet of an entry has afterwards. */
static __always_inline void becomes(struct tuple *to, const struct conn *c, __u8 protocol, __u8 stage)
{
	to->src = c->src;
	to->dst = c->dst;
	to->sport = c->sport;
	to->dport = c->dport;
	to->protocol = protocol;
	to->stage = stage;
	to->pad[0] = 0;
	to->pad[1] = 0;
}

static __always_inline void conn_to(struct conn *c, const struct tuple *t)
{
	c->src = t->src;
	c->dst = t->dst;
	c->sport = t->sport;
	c->dport = t->dport;
}

/* touch notes that a packet passed. A second is fine enough, and keeps
 * processors from writing the same entry all the time. */
static __always_inline void touch(struct conn *c, __u8 ends)
{
	__u64 now = bpf_ktime_get_ns();

	if (now - c->seen > 1000000000ULL)
		c->seen = now;
	if (ends & ~c->ends)
		c->ends |= ends;
}

/* answers_of is the key of the entry of the answers to a primary entry. */
static __always_inline void answers_of(struct tuple *key, const struct conn *primary, __u8 protocol)
{
	struct tuple t;

	becomes(&t, primary, protocol, 0);
	reversed(key, &t, (primary->flags & (CONN_NODE | CONN_SELF)) == CONN_NODE ? STAGE_IN : STAGE_OUT);
}

/* forget removes a connection, the primary entry first. */
static __noinline int forget(const struct tuple *key, const struct conn *primary)
{
	struct conn copy = *primary;
	struct tuple other, out;
	struct conn *masqueraded;

	bpf_map_delete_elem(&connections, key);
	answers_of(&other, &copy, key->protocol);
	bpf_map_delete_elem(&connections, &other);
	if (copy.flags & CONN_NODE)
		return 0;
	becomes(&other, &copy, key->protocol, STAGE_OUT);
	masqueraded = bpf_map_lookup_elem(&connections, &other);
	if (!masqueraded)
		return 0;
	becomes(&out, masqueraded, key->protocol, 0);
	bpf_map_delete_elem(&connections, &other);
	reversed(&other, &out, STAGE_IN);
	bpf_map_delete_elem(&connections, &other);
	return 0;
}

/* ended tells whether a connection has come to its end in either direction. */
static __always_inline bool ended(const struct tuple *key, const struct conn *primary)
{
	struct tuple other;
	struct conn *answers;

	if (primary->ends)
		return true;
	answers_of(&other, primary, key->protocol);
	answers = bpf_map_lookup_elem(&connections, &other);
	return !answers || answers->ends;
}

/* Why no entry could be made; 0: it was. */
enum {
	NO_ROOM = 1,
	NO_PORT,
};

/* add_answers makes the entry of the answers to packets that become t: they
 * become answer. Where another connection has the tuple already, t gets another
 * source port. keep: try t's own port first.
 */
static __noinline int add_answers(struct tuple *t, struct conn *answer, __u8 stage, bool keep)
{
	struct tuple key;
	long err;

	for (int i = 0; i < MAX_PORT_TRIES; i++) {
		if (i || !keep)
			t->sport = bpf_htons(1024 + (__u16)(bpf_get_prandom_u32() % (65536 - 1024)));
		reversed(&key, t, stage);
		err = bpf_map_update_elem(&connections, &key, answer, BPF_NOEXIST);
		if (!err)
			return 0;
		if (err != -EEXIST)
			return NO_ROOM;
	}
	return NO_PORT;
}
