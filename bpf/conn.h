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
 * answers at ingress (or at egress of lo where the endpoint is the node). So are
 * those whose source the kernel's NAT masquerades with a port that one of ours has.
 */
#pragma once

#include <linux/errno.h>
#include <linux/in.h>

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
#define CONN_KERNEL 64    /* the kernel's NAT translates it: it takes its source port, and changes nothing */

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

/* turn makes of a tuple that of the answers, as a stage sees them: reversed in
 * place, since the stack of a program is small.
 */
static __always_inline void turn(struct tuple *t, __u8 stage)
{
	__be16 port = t->sport;

	for (int i = 0; i < 4; i++) {
		__be32 w = t->src.w[i];

		t->src.w[i] = t->dst.w[i];
		t->dst.w[i] = w;
	}
	t->sport = t->dport;
	t->dport = port;
	t->stage = stage;
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

/* conn_answers makes an entry turn packets into answers to those of t. */
static __always_inline void conn_answers(struct conn *c, const struct tuple *t)
{
	c->src = t->dst;
	c->dst = t->src;
	c->sport = t->dport;
	c->dport = t->sport;
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
	becomes(key, primary, protocol, 0);
	turn(key, (primary->flags & (CONN_NODE | CONN_SELF)) == CONN_NODE ? STAGE_IN : STAGE_OUT);
}

/* What forget works with: the stack of a program is small, and forget is called
 * at its deepest. Each processor works on one packet at a time.
 */
struct forgotten {
	struct tuple answers, out;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct forgotten);
	__uint(max_entries, 1);
} forgottens SEC(".maps");

/* forget removes a connection, the primary entry first. */
static __noinline int forget(const struct tuple *key, const struct conn *primary)
{
	bool node = primary->flags & CONN_NODE;
	struct conn *masqueraded;
	struct forgotten *f;
	__u32 zero = 0;

	f = bpf_map_lookup_elem(&forgottens, &zero);
	if (!f)
		return 0;
	answers_of(&f->answers, primary, key->protocol);
	becomes(&f->out, primary, key->protocol, STAGE_OUT);
	bpf_map_delete_elem(&connections, key);
	bpf_map_delete_elem(&connections, &f->answers);
	if (node)
		return 0;
	masqueraded = bpf_map_lookup_elem(&connections, &f->out);
	if (!masqueraded)
		return 0;
	becomes(&f->answers, masqueraded, key->protocol, 0);
	turn(&f->answers, STAGE_IN);
	bpf_map_delete_elem(&connections, &f->out);
	bpf_map_delete_elem(&connections, &f->answers);
	return 0;
}

/* ended tells whether a connection has come to its end in either direction. */
static __noinline bool ended(const struct tuple *key, const struct conn *primary)
{
	struct tuple other;
	struct conn *answers;

	if (primary->ends)
		return true;
	answers_of(&other, primary, key->protocol);
	answers = bpf_map_lookup_elem(&connections, &other);
	return !answers || answers->ends;
}

/* finished tells whether a connection has come to its end in both directions. */
static __always_inline bool finished(const struct tuple *key, const struct conn *primary)
{
	struct tuple other;
	struct conn *answers;
	__u8 ends;

	answers_of(&other, primary, key->protocol);
	answers = bpf_map_lookup_elem(&connections, &other);
	if (!answers)
		return true;
	ends = primary->ends | answers->ends;
	/* SCTP ends both directions with one packet. */
	return (primary->ends & answers->ends & CONN_FIN) || ends & CONN_RESET ||
	       (ends && key->protocol == IPPROTO_SCTP);
}

/* give_way removes a finished connection, told by the entry of its answers.
 * false: it is there, and not finished.
 */
static __noinline bool give_way(const struct tuple *key)
{
	struct conn *c = bpf_map_lookup_elem(&connections, key);
	struct tuple t;

	if (!c)
		return true;
	if (c->flags & CONN_PRIMARY)
		return false;
	becomes(&t, c, key->protocol, STAGE_OUT);
	if (key->stage == STAGE_IN && !(c->flags & CONN_INJECT)) { /* masqueraded: one step more */
		c = bpf_map_lookup_elem(&connections, &t);
		if (!c)
			return false;
		becomes(&t, c, key->protocol, 0);
	}
	turn(&t, STAGE_IN);
	c = bpf_map_lookup_elem(&connections, &t);
	if (!c) {
		t.stage = STAGE_OUT;
		c = bpf_map_lookup_elem(&connections, &t);
	}
	if (!c || !(c->flags & CONN_PRIMARY) || !finished(&t, c))
		return false;
	forget(&t, c);
	return true;
}

/* random_port is one of those that connections are masqueraded with. */
static __always_inline __be16 random_port(void)
{
	__u32 port = 1024 + bpf_get_prandom_u32() % (65536 - 1024 - NODE_PORTS);

	return bpf_htons(port < NODE_PORTS_FIRST ? port : port + NODE_PORTS);
}

/* is_node_port tells whether a NodePort has the source port of t. */
static __noinline bool is_node_port(const struct tuple *t)
{
	struct frontend_key key = {.port = t->sport, .protocol = t->protocol};

	addr_unspecified_like(&key.addr, &t->src);
	return bpf_map_lookup_elem(&frontends, &key) != NULL;
}

/* has_socket tells whether the node itself has a socket that takes answers to
 * packets of t. Its flows straight to an endpoint are in no table.
 */
static __noinline bool has_socket(struct __sk_buff *skb, const struct tuple *t)
{
	bool v4 = addr_is_v4(&t->src);
	struct bpf_sock_tuple at = {};
	struct bpf_sock *sk;
	__u32 size;

	if (v4) {
		at.ipv4.saddr = t->dst.w[3];
		at.ipv4.daddr = t->src.w[3];
		at.ipv4.sport = t->dport;
		at.ipv4.dport = t->sport;
	} else {
		__builtin_memcpy(at.ipv6.saddr, &t->dst, sizeof(at.ipv6.saddr));
		__builtin_memcpy(at.ipv6.daddr, &t->src, sizeof(at.ipv6.daddr));
		at.ipv6.sport = t->dport;
		at.ipv6.dport = t->sport;
	}
	size = v4 ? sizeof(at.ipv4) : sizeof(at.ipv6);
	switch (t->protocol) {
	case IPPROTO_TCP:
		sk = bpf_skc_lookup_tcp(skb, &at, size, BPF_F_CURRENT_NETNS, 0);
		break;
	case IPPROTO_UDP:
		sk = bpf_sk_lookup_udp(skb, &at, size, BPF_F_CURRENT_NETNS, 0);
		break;
	default: /* the kernel cannot look up SCTP sockets for us */
		return false;
	}
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* not_added counts why an entry of a new connection could not be made. The
 * packet is dropped then; the client sends it again.
 */
static __always_inline int not_added(int err)
{
	count(err == -E2BIG ? STAT_PACKET_CONNECTIONS_FULL : STAT_PACKET_NOT_ADDED);
	return err;
}
