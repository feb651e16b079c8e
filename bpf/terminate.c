/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ends sockets that sock.c connected to an endpoint that is gone. The agent
 * fills `gone` and reads an iterator in each network namespace; what is not a
 * Service's socket has no entry in `peers` and is never touched. */

#include "types.h"

char license_text[] SEC("license") = "Dual BSD/GPL";

/* The parts of kernel structures that are read, found by BTF. */
struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
} __attribute__((preserve_access_index));

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

/* Kernel 6.5. The iterator holds the socket's lock, as it must. */
extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

#define AF_INET 2 /* linux/socket.h of the kernel, which the headers for programs lack */

/* Endpoints that are gone from a Service port, and how many sockets were ended
 * for each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, __u32);
	__uint(max_entries, MAX_GONE);
} gone SEC(".maps");

/* sock.c's: what each connected socket asked for and got. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} peers SEC(".maps");

/* Whether a socket is connected to the endpoint that was noted: it may have been
 * disconnected since (connect() with AF_UNSPEC), and used in another way. */
static __always_inline bool is_peer(struct sock_common *sk, const struct peer *peer)
{
	struct addr to;

	if (sk->skc_family == AF_INET) {
		addr_from_v4(&to, sk->skc_daddr);
	} else {
		to.w[0] = sk->skc_v6_daddr.in6_u.u6_addr32[0];
		to.w[1] = sk->skc_v6_daddr.in6_u.u6_addr32[1];
		to.w[2] = sk->skc_v6_daddr.in6_u.u6_addr32[2];
		to.w[3] = sk->skc_v6_daddr.in6_u.u6_addr32[3];
	}
	return sk->skc_dport == peer->endpoint_port && addr_equal(&to, &peer->endpoint);
}

static __always_inline void end_if_gone(struct sock_common *sk)
{
	struct endpoint_key key = {};
	const struct peer *peer = bpf_sk_storage_get(&peers, sk, NULL, 0);
	__u32 *ended;

	if (!peer || !is_peer(sk, peer))
		return;
	key.service = peer->service;
	key.addr = peer->endpoint;
	key.port = peer->endpoint_port;
	key.protocol = peer->protocol;
	ended = bpf_map_lookup_elem(&gone, &key);
	if (ended && bpf_sock_destroy(sk) == 0)
		__sync_fetch_and_add(ended, 1);
}

SEC("iter/tcp")
int end_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	/* Where the endpoint said the end itself, the client may have yet to read it. */
	if (sk && (sk->skc_state == BPF_TCP_ESTABLISHED || sk->skc_state == BPF_TCP_SYN_SENT))
		end_if_gone(sk);
	return 0;
}
