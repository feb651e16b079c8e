/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets in the agent's cgroup: a destination that is a Service becomes an
 * endpoint once, as the socket connects (TCP) or sends (UDP), and no packet is
 * touched.
 *
 * Every socket may be left alone: its packets meet the packet backend, which
 * serves everything. So nothing is refused or dropped here, and whatever cannot
 * be translated without a difference to its program is left. IPv4-mapped
 * addresses of IPv6 sockets have the form that the maps have anyway. */

#include <linux/in.h>

#include "select.h"

char license_text[] SEC("license") = "Dual BSD/GPL";

/* Types that Go needs and no map has: BTF describes what is in use. */
__attribute__((used)) static void types_for_go(enum frontend_kind kind, enum stat stat, enum sum sum) {}

/* Set before loading. */
const volatile __u64 host_netns_cookie; /* of the agent's network namespace; 0: it is the first one */

/* What each connected socket asked for; gone with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} peers SEC(".maps");

/* Unconnected UDP sockets: Service address to endpoint, so that a flow stays
 * where it began. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct udp_flow_key);
	__type(value, struct udp_flow);
	__uint(max_entries, SIZE_BY_FLAG);
} udp_flows SEC(".maps");

/* And back: endpoint to Service address. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct udp_flow_key);
	__type(value, struct udp_flow);
	__uint(max_entries, SIZE_BY_FLAG);
} udp_answers SEC(".maps");

/* What is known of each unconnected UDP socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct udp_socket);
} udp_sockets SEC(".maps");

/* Endpoints that sockets were connected to: no others are looked for when they
 * are gone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct endpoint_key);
	__type(value, __u32);
	__uint(max_entries, MAX_CONNECTED);
} connected SEC(".maps");

static __always_inline void read_v4(struct bpf_sock_addr *ctx, struct place *p)
{
	addr_from_v4(&p->addr, ctx->user_ip4);
	p->port = (__be16)ctx->user_port;
}

static __always_inline void read_v6(struct bpf_sock_addr *ctx, struct place *p)
{
	p->addr.w[0] = ctx->user_ip6[0];
	p->addr.w[1] = ctx->user_ip6[1];
	p->addr.w[2] = ctx->user_ip6[2];
	p->addr.w[3] = ctx->user_ip6[3];
	p->port = (__be16)ctx->user_port;
}

static __always_inline void write_v4(struct bpf_sock_addr *ctx, const struct place *p)
{
	ctx->user_ip4 = p->addr.w[3];
	ctx->user_port = p->port;
}

static __always_inline void write_v6(struct bpf_sock_addr *ctx, const struct place *p)
{
	ctx->user_ip6[0] = p->addr.w[0];
	ctx->user_ip6[1] = p->addr.w[1];
	ctx->user_ip6[2] = p->addr.w[2];
	ctx->user_ip6[3] = p->addr.w[3];
	ctx->user_port = p->port;
}

static __always_inline __u32 settings_flags(void)
{
	__u32 zero = 0;
	const struct settings *s = bpf_map_lookup_elem(&settings, &zero);

	return s ? s->flags : 0;
}

/* Whether sockets of a pod's network namespace may be translated. */
static __always_inline bool may_translate(__u64 cookie)
{
	const enum namespace *known = bpf_map_lookup_elem(&namespaces, &cookie);
	__u32 once = 1;

	if (known)
		return *known == NAMESPACE_TRANSLATED;
	bpf_map_update_elem(&strangers, &cookie, &once, BPF_ANY);
	return false;
}

/* In what socket_kind gives: new connections and flows are left to packets. */
#define LEFT 8

/* Who asks (enum client_kind) for an address of that family, and LEFT. Global, so
 * that the verifier forgets which of them it is, and walks through what follows
 * once, not three times. */
__noinline int socket_kind(struct bpf_sock_addr *ctx, int v4, int loopback)
{
	__u64 host = host_netns_cookie, own = bpf_get_netns_cookie(ctx);
	__u32 flags = settings_flags();
	int left = flags & STAND_ASIDE ? LEFT : 0;

	if (!host)
		host = bpf_get_netns_cookie(NULL);
	if (own == host)
		return CLIENT_NODE | left;
	if (loopback || flags & (HOLD_PODS | NODE_ONLY)) /* a pod's loopback is its own */
		left = LEFT;
	else if (flags & ASK_NAMESPACES && !may_translate(own))
		left = LEFT;
	return (flags & (v4 ? DETECTS_PODS_V4 : DETECTS_PODS_V6) ? CLIENT_POD : CLIENT_OUTSIDE) | left;
}

/* Whether the program chose the socket's address. */
static __always_inline bool has_address(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk->src_ip4 | sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3];
}

/* Who asks for what. false: new connections and flows are left to packets. */
static __always_inline bool make_request(struct bpf_sock_addr *ctx, const struct place *to, struct request *r)
{
	int kind = socket_kind(ctx, addr_is_v4(&to->addr), addr_is_loopback(&to->addr));

	__builtin_memset(r, 0, sizeof(*r));
	r->kind = kind & (LEFT - 1);
	r->to.addr = to->addr;
	r->to.port = to->port;
	r->to.protocol = ctx->protocol;
	r->netns = bpf_get_netns_cookie(ctx);
	return !(kind & LEFT);
}

static __always_inline void note_connected(const struct peer *peer)
{
	struct endpoint_key key = {
		.service = peer->service,
		.addr = peer->endpoint,
		.port = peer->endpoint_port,
		.protocol = peer->protocol,
	};
	__u32 once = 1;

	if (!bpf_map_lookup_elem(&connected, &key))
		bpf_map_update_elem(&connected, &key, &once, BPF_ANY);
}

/* Translates the destination of connect(), and tells whether it did.
 *
 * A connected UDP socket is left to packets: it would send to its endpoint for
 * ever, whatever becomes of that one, as no hook sees what it sends. A socket
 * whose port its program chose is left as well: it may have two connections, to
 * two Services, and both may get one endpoint. Only the packet backend can give
 * one of them another source. */
static __always_inline bool connect_socket(struct bpf_sock_addr *ctx, struct place *p)
{
	struct request r;
	struct answer a = {};
	struct peer *peer;

	bpf_sk_storage_delete(&peers, ctx->sk); /* of an earlier connect */
	if (ctx->protocol != IPPROTO_TCP || !make_request(ctx, p, &r) || choose(&r, &a) != VERDICT_FORWARD)
		return false;
	if (ctx->sk->src_port || has_address(ctx)) {
		count(STAT_LEFT_BOUND);
		return false;
	}
	peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (peer) {
		peer->frontend = p->addr;
		peer->frontend_port = p->port;
		peer->endpoint = a.addr;
		peer->endpoint_port = a.port;
		peer->service = a.service;
		peer->protocol = r.to.protocol;
		note_connected(peer);
	} else {
		count(STAT_NOT_RECORDED);
	}
	p->addr = a.addr;
	p->port = a.port;
	count(STAT_CONNECT);
	return true;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	struct place p;

	read_v4(ctx, &p);
	if (connect_socket(ctx, &p))
		write_v4(ctx, &p);
	return 1;
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	struct place p;

	read_v6(ctx, &p);
	if (connect_socket(ctx, &p))
		write_v6(ctx, &p);
	return 1;
}

/* Notes that the program of a UDP socket chose its port or its address. */
static __always_inline void note_bound(struct bpf_sock_addr *ctx, bool chosen)
{
	struct udp_socket *u;

	if (!chosen || ctx->protocol != IPPROTO_UDP)
		return;
	u = bpf_sk_storage_get(&udp_sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (u)
		u->flags |= UDP_BOUND;
}

SEC("cgroup/bind4")
int sock_bind4(struct bpf_sock_addr *ctx)
{
	note_bound(ctx, ctx->user_port || ctx->user_ip4);
	return 1;
}

SEC("cgroup/bind6")
int sock_bind6(struct bpf_sock_addr *ctx)
{
	note_bound(ctx, ctx->user_port || ctx->user_ip6[0] | ctx->user_ip6[1] | ctx->user_ip6[2] | ctx->user_ip6[3]);
	return 1;
}

static __noinline void note_flow(void *map, __u64 cookie, const struct place *from, const struct place *to, __u32 index)
{
	struct udp_flow_key key = {.cookie = cookie, .addr = from->addr, .port = from->port};
	struct udp_flow value = {
		.used = bpf_ktime_get_ns(),
		.addr = to->addr,
		.port = to->port,
		.index = index,
	};

	if (bpf_map_update_elem(map, &key, &value, BPF_ANY))
		count(STAT_NOT_RECORDED);
}

/* The endpoint that this socket's datagrams to p go to already. */
static __noinline bool flow_goes_on(const struct request *r, __u64 cookie, const struct place *p,
				    struct place *endpoint)
{
	struct udp_flow_key key = {.cookie = cookie, .addr = p->addr, .port = p->port};
	struct udp_flow *flow = bpf_map_lookup_elem(&udp_flows, &key);
	__u64 idle;
	struct affinity who = {};

	if (!flow)
		return false;
	idle = bpf_ktime_get_ns() - flow->used;
	who.addr = flow->addr;
	who.port = flow->port;
	who.index = flow->index;
	if (idle >= UDP_FLOW_IDLE_NS || !still_serves(r, &who))
		return false;
	endpoint->addr = who.addr;
	endpoint->port = who.port;
	if (idle >= UDP_FLOW_TICK_NS) {
		flow->used = bpf_ktime_get_ns();
		note_flow(&udp_answers, cookie, endpoint, p, 0);
	}
	return true;
}

/* Whether what comes from an endpoint to a socket is an answer of another
 * Service address than p. */
static __noinline bool is_taken(__u64 cookie, const struct place *endpoint, const struct place *p)
{
	struct udp_flow_key key = {.cookie = cookie, .addr = endpoint->addr, .port = endpoint->port};
	const struct udp_flow *answers = bpf_map_lookup_elem(&udp_answers, &key);

	if (!answers || bpf_ktime_get_ns() - answers->used >= UDP_FLOW_IDLE_NS)
		return false;
	return answers->port != p->port || !addr_equal(&answers->addr, &p->addr);
}

/* Notes that what a socket sends goes out as it is. The kernel's NAT may have a
 * flow of it from now on, so that no other one is started here. If it goes to an
 * endpoint that the socket was translated to, answers are that one's own. */
static __noinline void note_direct(struct udp_socket *u, __u64 cookie, const struct place *p)
{
	struct udp_flow_key key = {.cookie = cookie, .addr = p->addr, .port = p->port};
	struct udp_flow_key asked = {.cookie = cookie};
	const struct udp_flow *answers;

	u->flags |= UDP_DIRECT;
	if (!(u->flags & UDP_TRANSLATED))
		return;
	answers = bpf_map_lookup_elem(&udp_answers, &key);
	if (!answers)
		return;
	asked.addr = answers->addr;
	asked.port = answers->port;
	bpf_map_delete_elem(&udp_answers, &key);
	bpf_map_delete_elem(&udp_flows, &asked);
}

/* Starts a flow of an unconnected socket. false: it is left to packets. */
static __always_inline bool start_flow(struct bpf_sock_addr *ctx, const struct request *r, struct udp_socket *u,
				       __u64 cookie, const struct place *p, struct place *endpoint)
{
	struct answer a = {};

	if (choose(r, &a) != VERDICT_FORWARD)
		return false;
	if (u->flags & UDP_BOUND || has_address(ctx)) {
		count(STAT_LEFT_BOUND);
		return false;
	}
	endpoint->addr = a.addr;
	endpoint->port = a.port;
	if (u->flags & UDP_DIRECT || is_taken(cookie, endpoint, p)) {
		count(STAT_LEFT_AMBIGUOUS);
		return false;
	}
	note_flow(&udp_answers, cookie, endpoint, p, 0);
	note_flow(&udp_flows, cookie, p, endpoint, a.index);
	return true;
}

/* Translates the destination of one datagram of an unconnected socket, and tells
 * whether it did. A socket that is connected hears its peer alone.
 *
 * Each sender must be seen by the address that was asked. So flows of a socket
 * are started as long as all that it sends is translated, and each has an
 * endpoint of its own: others are left to packets, which can give them another
 * port. */
static __always_inline bool send_socket(struct bpf_sock_addr *ctx, struct place *p)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct place endpoint = {};
	struct udp_socket *u;
	struct request r;
	bool starts;

	if (ctx->sk->state == BPF_TCP_ESTABLISHED)
		return false;
	u = bpf_sk_storage_get(&udp_sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!u)
		return false;
	/* It has no flow and gets none: what it sends to whomever costs no more look-ups. */
	if ((u->flags & (UDP_DIRECT | UDP_TRANSLATED)) == UDP_DIRECT)
		return false;
	starts = make_request(ctx, p, &r);
	/* A flow that is under way goes on, as it does through the kernel's NAT. */
	if (!flow_goes_on(&r, cookie, p, &endpoint) &&
	    (!starts || settings_flags() & TCP_ONLY || !start_flow(ctx, &r, u, cookie, p, &endpoint))) {
		note_direct(u, cookie, p);
		return false;
	}
	u->flags |= UDP_TRANSLATED;
	p->addr = endpoint.addr;
	p->port = endpoint.port;
	count(STAT_SEND);
	return true;
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct place p;
	bool from = ctx->msg_src_ip4;

	read_v4(ctx, &p);
	if (!from && send_socket(ctx, &p))
		write_v4(ctx, &p);
	return 1;
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct place p;
	bool from = ctx->msg_src_ip6[0] | ctx->msg_src_ip6[1] | ctx->msg_src_ip6[2] | ctx->msg_src_ip6[3];

	read_v6(ctx, &p);
	if (!from && send_socket(ctx, &p))
		write_v6(ctx, &p);
	return 1;
}

/* Whether p is the endpoint that a connected socket got; then p becomes what
 * it asked for. */
static __always_inline bool peer_back(struct bpf_sock_addr *ctx, struct place *p)
{
	const struct peer *peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, 0);

	if (!peer || peer->endpoint_port != p->port || !addr_equal(&peer->endpoint, &p->addr))
		return false;
	p->addr = peer->frontend;
	p->port = peer->frontend_port;
	return true;
}

/* The same for datagrams that an unconnected socket receives. As in conntrack, a
 * flow lives as long as something goes one of both ways. */
static __always_inline bool sender_back(struct bpf_sock_addr *ctx, struct place *p)
{
	struct udp_flow_key key = {.addr = p->addr, .port = p->port};
	struct udp_flow *answers, *flow;
	__u64 now, idle;

	if (peer_back(ctx, p))
		return true;
	key.cookie = bpf_get_socket_cookie(ctx);
	answers = bpf_map_lookup_elem(&udp_answers, &key);
	if (!answers)
		return false;
	now = bpf_ktime_get_ns();
	idle = now - answers->used;
	if (idle >= UDP_FLOW_IDLE_NS)
		return false;
	p->addr = answers->addr;
	p->port = answers->port;
	if (idle < UDP_FLOW_TICK_NS)
		return true;
	answers->used = now;
	key.addr = p->addr;
	key.port = p->port;
	flow = bpf_map_lookup_elem(&udp_flows, &key);
	if (flow)
		flow->used = now;
	return true;
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct place p;

	read_v4(ctx, &p);
	if (sender_back(ctx, &p))
		write_v4(ctx, &p);
	return 1;
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct place p;

	read_v6(ctx, &p);
	if (sender_back(ctx, &p))
		write_v6(ctx, &p);
	return 1;
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	struct place p;

	read_v4(ctx, &p);
	if (peer_back(ctx, &p))
		write_v4(ctx, &p);
	return 1;
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	struct place p;

	read_v6(ctx, &p);
	if (peer_back(ctx, &p))
		write_v6(ctx, &p);
	return 1;
}
