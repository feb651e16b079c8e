/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Ends sockets that sock.c connected to an endpoint that is gone. The agent
 * fills `gone` and reads an iterator in each network namespace; what is not a
 * Service's socket has no entry in `peers` and is never touched. */

#include "types.h"

char license_text[] SEC("license") = "Dual BSD/GPL";

/* The parts of kernel structures that are read, found by BTF. */
struct sock_common {
	unsigned short skc_family;
	volatile unsigned char skc_state;
} __attribute__((preserve_access_index));

struct udp_sock {
	struct sock_common *unused;
} __attribute__((preserve_access_index));

struct bpf_iter__udp {
	struct udp_sock *udp_sk;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

/* Kernel 6.5. The iterator holds the socket's lock, as it must. */
extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

#define MAX_GONE 4096

struct gone_key {
	__u32 service;
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
SAME_SIZE(struct gone_key, 24);

/* Endpoints that are gone from a Service port, and how many sockets were ended
 * for each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct gone_key);
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

static __always_inline void end_if_gone(struct sock_common *sk)
{
	struct gone_key key = {};
	const struct peer *peer = bpf_sk_storage_get(&peers, sk, NULL, 0);
	__u32 *ended;

	if (!peer)
		return;
	key.service = peer->service;
	key.addr = peer->endpoint;
	key.port = peer->endpoint_port;
	key.protocol = peer->protocol;
	ended = bpf_map_lookup_elem(&gone, &key);
	if (ended && bpf_sock_destroy(sk) == 0)
		__sync_fetch_and_add(ended, 1);
}

SEC("iter/udp")
int end_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	if (sk)
		end_if_gone((struct sock_common *)sk);
	return 0;
}

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2

SEC("iter/tcp")
int end_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	/* Where the endpoint said the end itself, the client may have yet to read it. */
	if (sk && (sk->skc_state == TCP_ESTABLISHED || sk->skc_state == TCP_SYN_SENT))
		end_if_gone(sk);
	return 0;
}
