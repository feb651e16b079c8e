// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The packet path: every packet to a Service that the socket hooks did not see,
 * from outside, from pods and from the node itself. It hangs on ingress and
 * egress of each device; conn.h says what is translated where.
 */
#include <linux/pkt_cls.h>

#include "select.h"
#include "reject.h"

/* Of the C library, which this is compiled without. */
#define AF_INET 2
#define AF_INET6 10

/* On to the programs of others on the same hook, and then to the stack. */
#define PASS TC_ACT_UNSPEC

#define LO 1 /* ifindex of lo, in every network namespace */

/* Set at load time: the cookie of the node's network namespace. */
const volatile __u64 host_netns_cookie = 0;

/* tc_index of a packet that this node translated at ingress. It stays with the
 * packet through the stack, and tells it from one of a flow that goes straight
 * from the same client port to the same endpoint. On one kernel each node has
 * a tag of its own.
 */
#define TAG ((__u16)(0x5359 + host_netns_cookie))

/* tc_index of a packet that ends on lo. */
#define DOOMED ((__u16)~TAG)

/* What does not fit on the stack; each processor works on one packet at a time.
 * The last three are of a connection in the making.
 */
struct scratch {
	struct packet packet, inner;
	struct request request;
	struct answer answer;
	struct conn conn, answers;
	struct tuple becomes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, 1);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* drop counts a packet that goes no further. */
static __always_inline int drop(enum stat why)
{
	count(why);
	return TC_ACT_SHOT;
}

/* reject answers a packet with an ICMP error, of become_error: on the device
 * that it came in by, or to the node's own socket as if the error came in by the
 * device that the packet was to go out by.
 */
static __noinline int reject(struct __sk_buff *skb, const struct packet *p, __u8 stage, __u32 mtu)
{
	/* No error is sent about anything but the start of a datagram. */
	if (p->fragment == FRAGMENT_LATER)
		return TC_ACT_SHOT;
	if (!may_send_error())
		return drop(STAT_PACKET_ERRORS_LIMITED);
	if (become_error(skb, p, mtu) || (p->l3 && swap_macs(skb)))
		return drop(STAT_PACKET_WRITE_FAILED);
	return bpf_redirect(skb->ifindex, stage == STAGE_OUT ? BPF_F_INGRESS : 0);
}

/* inject hands an answer to the stack as if it had come in by another device:
 * the one that the connection went out by, since that is where the stack
 * accepts its frontend as a source address.
 */
static __always_inline int inject(struct __sk_buff *skb, const struct packet *p, __u32 ifindex)
{
	struct device *d = bpf_map_lookup_elem(&devices, &ifindex);

	if (!d)
		return drop(STAT_PACKET_NO_ROUTE);
	if (!p->l3 && !(d->flags & DEVICE_NO_MAC)) {
		__be16 protocol = skb->protocol;

		if (bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &protocol, 2, 0))
			return drop(STAT_PACKET_WRITE_FAILED);
	}
	if (!(d->flags & DEVICE_NO_MAC) && bpf_skb_store_bytes(skb, 0, d->mac, ETH_ALEN, 0))
		return drop(STAT_PACKET_WRITE_FAILED);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* Where a packet goes out. */
struct way {
	__u32 ifindex;
	__u32 mtu; /* where the packet is larger, from Linux 5.12 on */
};

/* find_way asks the routing tables for the device that leads to t.dst; length:
 * of a packet that must fit, or 0. On the stack of a function of its own:
 * kernels before 6.8 count 32 bytes for each begun 32 of a function, and 512
 * for all that call each other.
 */
static __noinline long find_way(struct __sk_buff *skb, const struct tuple *t, __u8 ipv6, __u16 length, struct way *to)
{
	struct bpf_fib_lookup way = {};
	long err;

	way.family = ipv6 ? AF_INET6 : AF_INET;
	way.l4_protocol = t->protocol;
	way.ifindex = skb->ifindex;
	way.tot_len = length;
	if (ipv6) {
		__builtin_memcpy(way.ipv6_src, &t->src, sizeof(way.ipv6_src));
		__builtin_memcpy(way.ipv6_dst, &t->dst, sizeof(way.ipv6_dst));
	} else {
		way.ipv4_src = t->src.w[3];
		way.ipv4_dst = t->dst.w[3];
	}
	err = bpf_fib_lookup(skb, &way, sizeof(way), 0);
	to->ifindex = way.ifindex;
	to->mtu = way.mtu_result;
	return err;
}

/* Ways that find_way can answer with. */
static __always_inline bool is_way_out(long way)
{
	/* Without a neighbour the redirect asks for it; what is too large is cut or
	 * refused by the device. */
	return way == BPF_FIB_LKUP_RET_SUCCESS || way == BPF_FIB_LKUP_RET_NO_NEIGH || way == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/* too_large tells a packet of the node itself that does not fit the way to the
 * endpoint, which the stack does not know of: the way's MTU. 0: it fits.
 */
static __noinline __u32 too_large(struct __sk_buff *skb, const struct packet *p, const struct tuple *t)
{
	/* Of segments that the stack joined each goes out with headers of its own. */
	__u32 length = skb->gso_size ? p->l4 - p->l3 + sizeof(struct tcphdr) + skb->gso_size : p->end - p->l3;
	struct way way = {};

	if (!p->whole || length <= SMALL_PACKET || length > 0xffff)
		return 0;
	if (find_way(skb, t, p->ipv6, length, &way) != BPF_FIB_LKUP_RET_FRAG_NEEDED || way.mtu >= length)
		return 0;
	return way.mtu;
}

/* send_on sends a packet that the node itself opened a connection with towards
 * the endpoint that it has now: the stack chose a device for the frontend.
 */
static __always_inline int send_on(struct __sk_buff *skb, const struct packet *p, const struct tuple *t)
{
	struct way way = {};
	long found = find_way(skb, t, p->ipv6, 0, &way);

	if (is_way_out(found))
		return bpf_redirect_neigh(way.ifindex, NULL, 0, 0);
	if (found != BPF_FIB_LKUP_RET_NOT_FWDED)
		return drop(STAT_PACKET_NO_ROUTE);
	/* To the node itself. lo takes it there anyway. */
	return skb->ifindex == LO ? PASS : inject(skb, p, LO);
}

/* masquerade_address is the node's address that packets out of a device have.
 * false: it has none of the family.
 */
static __always_inline bool masquerade_address(__u32 ifindex, __u8 ipv6, struct addr *to)
{
	struct device *d = bpf_map_lookup_elem(&devices, &ifindex);

	if (!d)
		return false;
	*to = ipv6 ? d->v6 : d->v4;
	return ipv6 ? to->w[0] || to->w[1] || to->w[2] || to->w[3] : to->w[3] != 0;
}

/* Functions that are not static are verified once by themselves, so that their
 * loops are not walked through again from each way that leads to them. They are
 * given nothing but the packet and numbers; the rest is in scratch.
 */

/* How add_answers chooses a source port. */
#define PORT_KEEP 1 /* the packet's own first */
#define PORT_NODE 2 /* the source is the node's address: the ports of its sockets are taken */

/* add_answers makes the entry of the answers to packets that become s.becomes:
 * they become s.answers. Where another connection has the tuple already,
 * s.becomes gets another source port; after some tries that of a connection which
 * has ended. Not 0: it cannot be, and why was counted.
 */
__noinline int add_answers(struct __sk_buff *skb, int stage, int port)
{
	struct scratch *s = scratch();
	struct tuple key, *t;
	bool keep, own;
	int err; /* not long: before 6.4 the upper half of what a map's helpers give is 0 */

	if (!s)
		return -ENOMEM;
	t = &s->becomes;
	for (int i = 0; i < MAX_PORT_TRIES; i++) {
		keep = !i && port & PORT_KEEP;
		/* The socket that an unconnected UDP packet is from would find itself. */
		own = port & PORT_NODE && !(keep && t->protocol == IPPROTO_UDP);
		if (!keep)
			t->sport = random_port();
		reversed(&key, t, stage);
		if (own && (has_socket(skb, t) || is_node_port(t)))
			continue;
		err = bpf_map_update_elem(&connections, &key, &s->answers, BPF_NOEXIST);
		if (err == -EEXIST && i >= MAX_FREE_PORT_TRIES && give_way(&key))
			err = bpf_map_update_elem(&connections, &key, &s->answers, BPF_NOEXIST);
		if (!err)
			return 0;
		if (err != -EEXIST)
			return not_added(err);
	}
	count(STAT_PACKET_PORTS_TAKEN);
	return -EEXIST;
}

/* choose_endpoint answers s.request in s.answer (enum verdict). */
__noinline int choose_endpoint(void)
{
	struct scratch *s = scratch();

	return s ? choose(&s->request, &s->answer) : VERDICT_NONE;
}

/* masquerade_port: SCTP peers tell each other their ports, so they are changed
 * only where they must be. Others get a random port, as with kube-proxy, so that
 * nobody can foresee it.
 */
static __always_inline int masquerade_port(const struct packet *p)
{
	return p->tuple.protocol == IPPROTO_SCTP ? PORT_NODE | PORT_KEEP : PORT_NODE;
}

/* masquerade gives a connection its source address when its first packet goes
 * out; c is the entry of the client's packets at egress. Not 0: it cannot be, and
 * why was counted.
 */
static __noinline int masquerade(struct __sk_buff *skb, struct scratch *s, struct conn *c)
{
	const struct packet *p = &s->packet;
	struct tuple *t = &s->becomes;
	struct conn *at_egress;
	struct tuple back;

	becomes(t, c, p->tuple.protocol, 0);
	reversed(&back, t, STAGE_OUT);
	__builtin_memset(&s->answers, 0, sizeof(s->answers));
	conn_to(&s->answers, &back);
	if (!masquerade_address(skb->ifindex, p->ipv6, &t->src)) {
		count(STAT_PACKET_NO_ADDRESS);
		return -1;
	}
	if (add_answers(skb, STAGE_IN, masquerade_port(p)))
		return -1;
	/* From now on answers at egress were at ingress before. Where the endpoint is
	 * the node itself, packets never come here, and answers come from its socket. */
	at_egress = bpf_map_lookup_elem(&connections, &back);
	if (at_egress)
		at_egress->flags |= CONN_TAGGED;
	conn_to(c, t);
	barrier();
	c->flags &= ~CONN_MASQUERADE;
	count(STAT_PACKET_MASQUERADED);
	return 0;
}

/* client_kind tells who sent a packet that is seen at ingress (enum client_kind).
 */
__noinline int client_kind(struct __sk_buff *skb)
{
	struct range_key range = {.bits = 128};
	__u32 ifindex = skb->ifindex;
	struct device *d = bpf_map_lookup_elem(&devices, &ifindex);
	struct scratch *s = scratch();

	if (!s)
		return CLIENT_OUTSIDE;
	if (d && d->flags & DEVICE_PODS)
		return CLIENT_POD;
	range.addr = s->packet.tuple.src;
	return bpf_map_lookup_elem(&pod_ranges, &range) ? CLIENT_POD : CLIENT_OUTSIDE;
}

static __always_inline bool is_masqueraded(const struct answer *a, __u8 kind, const struct addr *client)
{
	/* An endpoint that reaches itself would take the answer for its own. */
	return a->snat == SNAT_ALL || (a->snat == SNAT_NODE && kind == CLIENT_NODE) ||
	       (a->snat == SNAT_NON_PODS && kind != CLIENT_POD) || addr_equal(&a->addr, client);
}

/* add_primary makes the entry of the client's packets, the last of them, and
 * gives back what is there now: of two packets at a time one comes first.
 */
static __always_inline struct conn *add_primary(const struct tuple *key, struct conn *c)
{
	int err;

	c->seen = bpf_ktime_get_ns();
	c->flags |= CONN_PRIMARY;
	err = bpf_map_update_elem(&connections, key, c, BPF_NOEXIST);
	if (err && err != -EEXIST)
		not_added(err);
	return bpf_map_lookup_elem(&connections, key);
}

/* new_conn begins the entries of a connection with the endpoint of the answer. */
static __always_inline void new_conn(struct __sk_buff *skb, struct scratch *s, __u8 stage)
{
	__builtin_memset(&s->conn, 0, sizeof(s->conn));
	__builtin_memset(&s->answers, 0, sizeof(s->answers));
	s->conn.ifindex = skb->ifindex;
	s->conn.service = s->answer.service;
	s->conn.generation = s->answer.generation;
	conn_answers(&s->answers, &s->packet.tuple);
	s->becomes = s->packet.tuple;
	s->becomes.dst = s->answer.addr;
	s->becomes.dport = s->answer.port;
	s->becomes.stage = stage;
}

/* open_in makes the entries of a connection whose first packet comes in. NULL:
 * it cannot be, and why was counted.
 */
static __noinline struct conn *open_in(struct __sk_buff *skb, struct scratch *s, __u8 kind)
{
	const struct tuple *key = &s->packet.tuple;
	struct conn *c = &s->conn;
	int err;

	new_conn(skb, s, STAGE_OUT);
	if (add_answers(skb, STAGE_OUT, PORT_KEEP))
		return NULL;
	conn_to(c, &s->becomes);
	if (is_masqueraded(&s->answer, kind, &key->src)) {
		c->flags = CONN_MASQUERADE | CONN_TAGGED;
		err = bpf_map_update_elem(&connections, &s->becomes, c, BPF_ANY);
		if (err) {
			not_added(err);
			return NULL;
		}
		c->flags = 0;
	}
	return add_primary(key, c);
}

/* is_forwarded tells a packet that goes out and came in before. */
static __always_inline bool is_forwarded(const struct __sk_buff *skb, __u8 stage)
{
	return stage == STAGE_OUT && skb->ingress_ifindex;
}

/* open_out makes the entries of a connection that the node itself opens, or that
 * is forwarded and needs another source port.
 */
static __noinline struct conn *open_out(struct __sk_buff *skb, struct scratch *s)
{
	const struct packet *p = &s->packet;
	struct tuple *t = &s->becomes;
	bool self, masqueraded;
	struct way way = {};
	long found;

	new_conn(skb, s, STAGE_OUT);
	s->conn.flags = CONN_NODE;
	s->answers.ifindex = skb->ifindex;
	found = is_forwarded(skb, STAGE_OUT) ? BPF_FIB_LKUP_RET_SUCCESS : find_way(skb, t, p->ipv6, 0, &way);
	self = found == BPF_FIB_LKUP_RET_NOT_FWDED;
	if (!self && !is_way_out(found)) {
		count(STAT_PACKET_NO_ROUTE);
		return NULL;
	}
	masqueraded = is_masqueraded(&s->answer, CLIENT_NODE, &t->src) || addr_is_loopback(&t->src);
	if (self) {
		s->conn.flags |= CONN_SELF;
	} else {
		s->answers.flags = CONN_INJECT;
		if (masqueraded && !masquerade_address(way.ifindex, p->ipv6, &t->src)) {
			count(STAT_PACKET_NO_ADDRESS);
			return NULL;
		}
	}
	if (add_answers(skb, self ? STAGE_OUT : STAGE_IN, PORT_KEEP | PORT_NODE))
		return NULL;
	conn_to(&s->conn, t);
	return add_primary(&p->tuple, &s->conn);
}

/* no_connection is what becomes of a packet that begins no connection. */
static __always_inline int no_connection(struct __sk_buff *skb, const struct packet *p, __u8 stage, enum verdict v)
{
	if (v == VERDICT_NONE) {
		v = unserved(&p->tuple.dst);
		if (v == VERDICT_REJECT)
			count(STAT_REJECTED_PORT);
		else if (v == VERDICT_DROP)
			count(STAT_DROPPED_UNALLOCATED);
	}
	switch (v) {
	case VERDICT_REJECT:
		return reject(skb, p, stage, 0);
	case VERDICT_DROP: /* counted where it was decided */
		if (stage == STAGE_IN)
			return TC_ACT_SHOT;
		/* At egress send() would tell of the drop (ENOBUFS). So the packet
		 * goes to lo and is dropped there, where nobody asks. */
		skb->tc_index = DOOMED;
		return bpf_redirect(LO, 0);
	default:
		return PASS;
	}
}

/* request_of is what a packet asks of select.h. */
static __always_inline void request_of(struct request *r, const struct packet *p, __u8 kind)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->to.addr = p->tuple.dst;
	r->to.port = p->tuple.dport;
	r->to.protocol = p->tuple.protocol;
	r->client = p->tuple.src;
	r->kind = kind;
}

/* is_translated tells a packet that was translated already: an answer that was
 * handed to the stack by another device, with a Service's address as source.
 */
static __always_inline bool is_translated(const struct packet *p)
{
	struct tuple key;
	struct conn *c;

	reversed(&key, &p->tuple, STAGE_OUT);
	c = bpf_map_lookup_elem(&connections, &key);
	return c && c->flags & CONN_NODE;
}

/* clashes tells a flow that is not to a Service, but whose answers would be
 * taken for those of a connection that is: it goes straight from the same
 * client port to the same endpoint. If that connection is over, it gives way.
 */
static __always_inline bool clashes(const struct packet *p, __u8 stage)
{
	struct tuple key;
	struct conn *c;

	reversed(&key, &p->tuple, stage == STAGE_IN ? STAGE_OUT : STAGE_IN);
	c = bpf_map_lookup_elem(&connections, &key);
	return c && !(c->flags & (CONN_PRIMARY | CONN_TAGGED)) && !give_way(&key);
}

/* is_served tells whether a packet's destination is a frontend. */
static __always_inline bool is_served(const struct packet *p)
{
	struct frontend_key key = {.addr = p->tuple.dst, .port = p->tuple.dport, .protocol = p->tuple.protocol};
	struct frontend f;

	return find_frontend(&key, &f);
}

/* may_begin is false while the first programs get onto one device after the
 * other: a connection's answers might come in by one that has none yet.
 */
static __always_inline bool may_begin(void)
{
	__u32 zero = 0;
	const struct settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s && s->flags & PACKETS_BEGIN;
}

/* begin finds an endpoint for a packet that no entry is for. Where *conn is
 * NULL afterwards, the packet's fate is the result.
 */
static __noinline int begin(struct __sk_buff *skb, struct scratch *s, __u8 stage, __u8 kind, struct conn **conn)
{
	struct packet *p = &s->packet;
	enum verdict v = VERDICT_NONE;

	if (!may_begin())
		return PASS;
	if (p->fragment == FRAGMENT_LOST)
		return unserved(&p->tuple.dst) == VERDICT_NONE ? PASS : drop(STAT_PACKET_FRAGMENT_LOST);
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6)
		return no_connection(skb, p, stage, VERDICT_NONE);
	if (!p->opens) {
		if (is_served(p))
			count(STAT_PACKET_UNKNOWN);
		return PASS;
	}
	if (stage == STAGE_IN && is_translated(p))
		return PASS;
	if (!is_forwarded(skb, stage)) { /* that was judged where it came in */
		request_of(&s->request, p, kind);
		v = choose_endpoint();
	}
	/* What open_out translated comes by once more, on the device that it was sent to. */
	if (v == VERDICT_NONE && skb->tc_index != TAG && clashes(p, stage)) {
		/* It keeps its destination and gets another source port. */
		__builtin_memset(&s->answer, 0, sizeof(s->answer));
		s->answer.addr = p->tuple.dst;
		s->answer.port = p->tuple.dport;
		v = VERDICT_FORWARD;
	}
	if (v != VERDICT_FORWARD)
		return is_forwarded(skb, stage) ? PASS : no_connection(skb, p, stage, v);
	*conn = stage == STAGE_IN ? open_in(skb, s, kind) : open_out(skb, s);
	return TC_ACT_SHOT;
}

/* is_over tells a packet that must not follow the entry that is there for it:
 * it opens a connection anew, or its endpoint left the pool and the flow has no
 * end of its own that one could wait for.
 */
static __noinline bool is_over(struct scratch *s, struct conn *c, __u8 kind)
{
	struct affinity endpoint = {.addr = c->dst, .port = c->dport};
	struct packet *p = &s->packet;
	struct service *now;

	if (!p->opens)
		return false;
	if (p->tuple.protocol != IPPROTO_UDP && ended(&p->tuple, c))
		return true;
	now = bpf_map_lookup_elem(&services, &c->service);
	if (!c->service || (now && now->generation == c->generation))
		return false;
	request_of(&s->request, p, kind);
	if (!still_serves(&s->request, &endpoint))
		return true;
	if (now)
		c->generation = now->generation;
	return false;
}

/* translate makes of a packet what the entry says and sends it on its way. */
static __noinline int translate(struct __sk_buff *skb, struct scratch *s, struct conn *c, __u8 stage)
{
	const struct packet *p = &s->packet;
	bool finds_way;
	struct tuple t;
	__u8 flags;

	if (stage == STAGE_OUT && c->flags & CONN_MASQUERADE && masquerade(skb, s, c))
		return TC_ACT_SHOT;
	touch(c, p->ends);
	flags = c->flags;
	becomes(&t, c, p->tuple.protocol, 0);
	if (p->fragment == FRAGMENT_FIRST && p->tuple.protocol == IPPROTO_SCTP)
		return drop(STAT_PACKET_FRAGMENT_SCTP);
	/* The stack found the way to the frontend, and of what is forwarded that to the endpoint. */
	finds_way = flags & CONN_NODE && !is_forwarded(skb, stage);
	if (finds_way && stage == STAGE_OUT) {
		__u32 mtu = too_large(skb, p, &t);

		if (mtu)
			return reject(skb, p, stage, mtu);
	}
	if (rewrite(skb, p, &t))
		return drop(STAT_PACKET_WRITE_FAILED);
	count(STAT_PACKET_TRANSLATED);
	if (stage == STAGE_IN || flags & CONN_NODE)
		skb->tc_index = TAG;
	if (finds_way)
		return send_on(skb, p, &t);
	if (flags & CONN_INJECT && c->ifindex != skb->ifindex)
		return inject(skb, p, c->ifindex);
	return PASS;
}

/* translate_error does so with an ICMP error about a packet of a connection: it
 * goes to whoever sent that packet, who knows it by what it was before.
 */
static __noinline int translate_error(struct __sk_buff *skb, struct scratch *s, __u8 stage)
{
	struct packet *p = &s->packet, *inner = &s->inner;
	struct tuple key, t, outer;
	struct conn *c;

	/* What the error quotes ends with it; behind that may be the frame's padding. */
	if (parse(skb, inner, p->l4 + ICMP_HEADER, p->ipv6, 1) != PARSED || inner->l4 + sizeof(__be32) > p->end)
		return PASS;
	/* The error travels like an answer to the packet inside it. */
	reversed(&key, &inner->tuple, stage);
	c = bpf_map_lookup_elem(&connections, &key);
	/* The node's own errors are not tagged: they are about packets that were. */
	if (!c || c->flags & (CONN_MASQUERADE | CONN_KERNEL))
		return PASS;
	outer = p->tuple;
	/* Whoever noticed, the receiver's network knows of this side only what the
	 * packets of the connection have as source: of others it may drop packets. */
	if (!addr_equal(&key.src, &c->src))
		outer.src = c->src;
	if (addr_equal(&outer.dst, &key.dst))
		outer.dst = c->dst;
	becomes(&t, c, key.protocol, 0);
	reversed(&key, &t, 0);
	if (rewrite_error(skb, p, &outer, inner, &key))
		return drop(STAT_PACKET_WRITE_FAILED);
	count(STAT_PACKET_ERROR_TRANSLATED);
	if (stage == STAGE_IN)
		skb->tc_index = TAG;
	if (c->flags & CONN_NODE)
		return send_on(skb, p, &outer);
	if (c->flags & CONN_INJECT && c->ifindex != skb->ifindex)
		return inject(skb, p, c->ifindex);
	return PASS;
}

/* handle is all of it, for a packet whose network header is at l3. */
static __always_inline int handle(struct __sk_buff *skb, __u8 stage, __u32 l3)
{
	int kind = CLIENT_NODE;
	struct scratch *s = scratch();
	struct conn *c = NULL;
	struct packet *p;
	__u8 ipv6;
	int fate;

	if (skb->tc_index == DOOMED)
		return TC_ACT_SHOT;
	/* It was translated where it came in, and comes in again by the bridge, bond
	 * or VLAN that the device belongs to. */
	if (!s || (stage == STAGE_IN && skb->tc_index == TAG))
		return PASS;
	p = &s->packet;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		ipv6 = 0;
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		ipv6 = 1;
	else
		return PASS;
	switch (parse(skb, p, l3, ipv6, 0)) {
	case PARSED:
		break;
	case PARSED_ERROR:
		return translate_error(skb, s, stage);
	case PARSED_BAD:
		count(STAT_PACKET_BAD);
		return PASS;
	default:
		return PASS;
	}
	p->tuple.stage = stage;
	c = bpf_map_lookup_elem(&connections, &p->tuple);
	if (c && c->flags & CONN_TAGGED && skb->tc_index != TAG)
		return PASS;
	if (c && c->flags & CONN_KERNEL) {
		touch(c, p->ends);
		return PASS;
	}
	if (c && (!(c->flags & CONN_PRIMARY) || !p->opens))
		return translate(skb, s, c, stage);
	/* What goes out and came in before was judged then; but the kernel's NAT may
	 * have given a new flow the source port of one of ours since. What comes in
	 * for 127.0.0.1 or ::1 is for the stack to refuse. */
	if (stage == STAGE_OUT ? !c && is_forwarded(skb, stage) && (!p->opens || skb->tc_index == TAG) : addr_is_loopback(&p->tuple.dst))
		return PASS;
	if (stage == STAGE_IN)
		kind = client_kind(skb);
	if (c && !is_over(s, c, kind))
		return translate(skb, s, c, stage);
	if (c) {
		forget(&p->tuple, c);
		c = NULL;
	}
	fate = begin(skb, s, stage, kind, &c);
	return c ? translate(skb, s, c, stage) : fate;
}

/* Devices whose packets have an Ethernet header, lo among them. */
SEC("tc")
int packet_in(struct __sk_buff *skb)
{
	return handle(skb, STAGE_IN, ETH_HLEN);
}

SEC("tc")
int packet_out(struct __sk_buff *skb)
{
	return handle(skb, STAGE_OUT, ETH_HLEN);
}

/* Devices whose packets begin with the network header: tunnels. */
SEC("tc")
int packet_in_bare(struct __sk_buff *skb)
{
	return handle(skb, STAGE_IN, 0);
}

SEC("tc")
int packet_out_bare(struct __sk_buff *skb)
{
	return handle(skb, STAGE_OUT, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
