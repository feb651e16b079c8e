// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

/* Sockets in the agent's cgroup: a destination that is a Service becomes an
 * endpoint once, as the socket connects or sends, and no packet is touched.
 *
 * Whatever needs the client's address, or must vanish in silence, is left alone
 * here: its packets meet packet.c. IPv4-mapped addresses of IPv6 sockets have
 * the form that the maps have anyway. */

#include <linux/errno.h>
#include <linux/in.h>

#include "select.h"

char license_text[] SEC("license") = "Dual BSD/GPL";

/* Set before loading. */
const volatile __u64 host_netns_cookie; /* of the agent's network namespace; 0: it is the first one */
const volatile __u8 have_set_retval;    /* kernel 5.18: a refused connect says ECONNREFUSED */

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
	__uint(max_entries, DEFAULT_UDP_FLOWS);
} udp_flows SEC(".maps");

/* And back: endpoint to Service address. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct udp_flow_key);
	__type(value, struct udp_flow);
	__uint(max_entries, DEFAULT_UDP_FLOWS);
} udp_answers SEC(".maps");

/* An address and port of a socket call, in the maps' form. */
struct place {
	struct addr addr;
	__be16 port;
};

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

/* Who asks (enum client_kind) for an address of that family; negative: a pod
 * that means its own loopback, or is held. Global, so that the verifier forgets
 * which of them it is, and walks through what follows once, not three times.
 */
__noinline int socket_kind(struct bpf_sock_addr *ctx, int v4, int loopback)
{
	__u64 host = host_netns_cookie;
	__u32 flags;

	if (!host)
		host = bpf_get_netns_cookie(NULL);
	if (bpf_get_netns_cookie(ctx) == host)
		return CLIENT_NODE;
	flags = settings_flags();
	if (loopback || flags & HOLD_PODS)
		return -1;
	return flags & (v4 ? DETECTS_PODS_V4 : DETECTS_PODS_V6) ? CLIENT_POD : CLIENT_OUTSIDE;
}

/* A socket that was bound to loopback cannot reach an endpoint elsewhere
 * without its source being translated: that needs the packet path. */
static __always_inline bool bound_to_loopback(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if ((sk->src_ip4 & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000))
		return true;
	return sk->family == 10 && sk->src_ip6[0] == 0 && sk->src_ip6[1] == 0 && sk->src_ip6[2] == 0 &&
	       sk->src_ip6[3] == bpf_htonl(1);
}

/* Whether a connect() is left to the packet path, which can give the connection
 * another source: two connections from one port that its client chose, to two
 * Services, may get one endpoint, and no socket could tell them apart. */
static __always_inline bool keeps_source(struct bpf_sock_addr *ctx, const struct request *r)
{
	return ctx->sk->src_port || (r->kind == CLIENT_NODE && bound_to_loopback(ctx));
}

/* Who asks for what. false: it is none of ours. */
static __always_inline bool make_request(struct bpf_sock_addr *ctx, const struct place *to, struct request *r)
{
	int kind;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return false; /* SCTP: its associations have more than one address */
	kind = socket_kind(ctx, addr_is_v4(&to->addr), addr_is_loopback(&to->addr));
	if (kind < 0)
		return false;
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = kind;
	r->to.addr = to->addr;
	r->to.port = to->port;
	r->to.protocol = ctx->protocol;
	r->address_unknown = 1;
	client_of_netns(&r->client, bpf_get_netns_cookie(ctx));
	return true;
}

/* Fails the system call at once, as an ICMP error would a moment later. Before
 * kernel 5.18 the errno would be EPERM: the packet path rejects there. */
static __always_inline int refuse(void)
{
	if (!have_set_retval)
		return 1;
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

/* What a verdict other than VERDICT_FORWARD means for a system call. */
static __always_inline int not_forwarded(enum verdict v, const struct addr *to)
{
	if (v == VERDICT_NONE && unserved(to) == VERDICT_REJECT) {
		count(STAT_REJECTED_PORT);
		return refuse();
	}
	if (v == VERDICT_REJECT)
		return refuse();
	if (v != VERDICT_NONE)
		count(STAT_SOCK_LEFT);
	return 1;
}

/* Translates the destination of connect(). changed: p is another now. Gives what
 * the hook returns. */
static __always_inline int connect_socket(struct bpf_sock_addr *ctx, struct place *p, bool *changed)
{
	struct request r;
	struct answer a = {};
	enum verdict v;
	struct peer *peer;

	bpf_sk_storage_delete(&peers, ctx->sk); /* of an earlier connect */
	if (!make_request(ctx, p, &r))
		return 1;
	v = choose(&r, &a);
	if (v == VERDICT_FORWARD && keeps_source(ctx, &r))
		v = VERDICT_UNKNOWN;
	if (v != VERDICT_FORWARD)
		return not_forwarded(v, &p->addr);
	peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (peer) {
		peer->frontend = p->addr;
		peer->frontend_port = p->port;
		peer->endpoint = a.addr;
		peer->endpoint_port = a.port;
		peer->service = a.service;
		peer->protocol = r.to.protocol;
	} else {
		count(STAT_SOCK_NOT_RECORDED);
	}
	p->addr = a.addr;
	p->port = a.port;
	*changed = true;
	count(STAT_SOCK_CONNECT);
	return 1;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	struct place p;
	bool changed = false;
	int ret;

	read_v4(ctx, &p);
	ret = connect_socket(ctx, &p, &changed);
	if (changed)
		write_v4(ctx, &p);
	return ret;
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	struct place p;
	bool changed = false;
	int ret;

	read_v6(ctx, &p);
	ret = connect_socket(ctx, &p, &changed);
	if (changed)
		write_v6(ctx, &p);
	return ret;
}

static __noinline void note_flow(void *map, __u64 cookie, const struct place *from, const struct place *to,
				      __u32 index)
{
	struct udp_flow_key key = {.cookie = cookie, .addr = from->addr, .port = from->port};
	struct udp_flow value = {
		.used = bpf_ktime_get_ns(),
		.addr = to->addr,
		.port = to->port,
		.index = index,
	};

	if (bpf_map_update_elem(map, &key, &value, BPF_ANY))
		count(STAT_SOCK_NOT_RECORDED);
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

/* Translates the destination of one datagram of an unconnected socket. */
static __always_inline int send_socket(struct bpf_sock_addr *ctx, struct place *p, bool *changed)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct place endpoint = {};
	struct answer a = {};
	struct request r;
	enum verdict v;

	if (!make_request(ctx, p, &r))
		return 1;
	if (!flow_goes_on(&r, cookie, p, &endpoint)) {
		v = choose(&r, &a);
		if (v == VERDICT_FORWARD && r.kind == CLIENT_NODE && bound_to_loopback(ctx))
			v = VERDICT_UNKNOWN;
		if (v != VERDICT_FORWARD)
			return not_forwarded(v, &p->addr);
		endpoint.addr = a.addr;
		endpoint.port = a.port;
		note_flow(&udp_answers, cookie, &endpoint, p, 0);
		note_flow(&udp_flows, cookie, p, &endpoint, a.index);
	}
	p->addr = endpoint.addr;
	p->port = endpoint.port;
	*changed = true;
	count(STAT_SOCK_SEND);
	return 1;
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct place p;
	bool changed = false;
	int ret;

	read_v4(ctx, &p);
	ret = send_socket(ctx, &p, &changed);
	if (changed)
		write_v4(ctx, &p);
	return ret;
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct place p;
	bool changed = false;
	int ret;

	read_v6(ctx, &p);
	ret = send_socket(ctx, &p, &changed);
	if (changed)
		write_v6(ctx, &p);
	return ret;
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

/* The same for datagrams that an unconnected socket receives. */
static __always_inline bool sender_back(struct bpf_sock_addr *ctx, struct place *p)
{
	struct udp_flow_key key = {.addr = p->addr, .port = p->port};
	const struct udp_flow *flow;

	if (peer_back(ctx, p))
		return true;
	key.cookie = bpf_get_socket_cookie(ctx);
	flow = bpf_map_lookup_elem(&udp_answers, &key);
	if (!flow)
		return false;
	p->addr = flow->addr;
	p->port = flow->port;
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
