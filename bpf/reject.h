/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet that nobody takes becomes the ICMP error that says so: port
 * unreachable, as kube-proxy's REJECT sends to every protocol. One that is too
 * large for its way becomes the error that tells the way's MTU.
 */
#pragma once

#include <linux/if_ether.h>

#include "rewrite.h"

#define ERROR_TTL 64
#define ICMP4_PORT_UNREACHABLE 3 /* code */
#define ICMP4_FRAGMENTATION_NEEDED 4
#define ICMP6_PORT_UNREACHABLE 4

/* The most of the rejected packet that the error carries: its headers, and of
 * its transport header as much as has the checksum in it, which the kernel
 * does not let us cut off.
 */
#define ERROR_QUOTE 128
#define QUOTED_TRANSPORT 20

/* How many ICMP errors a processor may still send. */
struct error_budget {
	__u64 refilled; /* CLOCK_MONOTONIC ns */
	__u64 left;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct error_budget);
	__uint(max_entries, 1);
} error_budgets SEC(".maps");

/* may_send_error takes one from this processor's budget. */
static __always_inline bool may_send_error(void)
{
	__u32 zero = 0;
	__u64 now = bpf_ktime_get_ns(), more;
	struct error_budget *b = bpf_map_lookup_elem(&error_budgets, &zero);

	if (!b)
		return false;
	more = (now - b->refilled) / ERROR_INTERVAL_NS;
	if (more) {
		b->left = b->left + more < MAX_ERRORS ? b->left + more : MAX_ERRORS;
		b->refilled = now;
	}
	if (!b->left)
		return false;
	b->left--;
	return true;
}

static __always_inline __u16 fold(__s64 sum)
{
	__u32 s = (__u32)sum;

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return ~s;
}

struct error4 {
	struct iphdr ip;
	__u8 type, code;
	__u16 checksum;
	__be32 mtu; /* 0 in other errors */
};
SAME_SIZE(struct error4, 28);

struct error6 {
	struct ipv6hdr ip;
	__u8 type, code;
	__u16 checksum;
	__be32 mtu; /* 0 in other errors */
};
SAME_SIZE(struct error6, 48);

static __always_inline int write_error4(struct __sk_buff *skb, const struct packet *p, __u32 mtu, __u32 quote, __s64 quoted)
{
	struct error4 e = {};

	e.ip.version = 4;
	e.ip.ihl = 5;
	e.ip.tot_len = bpf_htons(sizeof(e) + quote);
	e.ip.ttl = ERROR_TTL;
	e.ip.protocol = IPPROTO_ICMP;
	e.ip.saddr = p->tuple.dst.w[3];
	e.ip.daddr = p->tuple.src.w[3];
	e.ip.check = fold(bpf_csum_diff(0, 0, (__be32 *)&e.ip, sizeof(e.ip), 0));
	e.type = ICMP4_UNREACHABLE;
	e.code = mtu ? ICMP4_FRAGMENTATION_NEEDED : ICMP4_PORT_UNREACHABLE;
	e.mtu = bpf_htonl(mtu);
	e.checksum = fold(bpf_csum_diff(0, 0, (__be32 *)&e.type, ICMP_HEADER, quoted));
	return bpf_skb_store_bytes(skb, p->l3, &e, sizeof(e), 0);
}

static __always_inline int write_error6(struct __sk_buff *skb, const struct packet *p, __u32 mtu, __u32 quote, __s64 quoted)
{
	struct error6 e = {};
	struct {
		struct addr src, dst;
		__be32 length, next;
	} pseudo = {
		.src = p->tuple.dst,
		.dst = p->tuple.src,
		.length = bpf_htonl(ICMP_HEADER + quote),
		.next = bpf_htonl(IPPROTO_ICMPV6),
	};

	e.ip.version = 6;
	e.ip.payload_len = bpf_htons(ICMP_HEADER + quote);
	e.ip.nexthdr = IPPROTO_ICMPV6;
	e.ip.hop_limit = ERROR_TTL;
	__builtin_memcpy(&e.ip.saddr, &p->tuple.dst, sizeof(e.ip.saddr));
	__builtin_memcpy(&e.ip.daddr, &p->tuple.src, sizeof(e.ip.daddr));
	e.type = mtu ? ICMP6_TOO_BIG : ICMP6_UNREACHABLE;
	e.code = mtu ? 0 : ICMP6_PORT_UNREACHABLE;
	e.mtu = bpf_htonl(mtu);
	quoted = bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), quoted);
	e.checksum = fold(bpf_csum_diff(0, 0, (__be32 *)&e.type, ICMP_HEADER, quoted));
	return bpf_skb_store_bytes(skb, p->l3, &e, sizeof(e), 0);
}

/* quote_sum is the sum of the part of the packet that is quoted. */
static __always_inline int quote_sum(struct __sk_buff *skb, const struct packet *p, __u32 quote, __s64 *sum)
{
	__u8 quoted[ERROR_QUOTE] = {};

	if (quote < 1 || quote > ERROR_QUOTE)
		return -1;
	/* Of 16 bits, as the verifier is sure of it then on old kernels too. */
	if (bpf_skb_load_bytes(skb, p->l3, quoted, ((quote - 1) & (ERROR_QUOTE - 1)) + 1))
		return -1;
	*sum = bpf_csum_diff(0, 0, (__be32 *)quoted, sizeof(quoted), 0);
	return 0;
}

struct reset6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};
SAME_SIZE(struct reset6, 60);

#define TCP_FLAGS_AT 13 /* in the header */
#define TCP_RESET_ACK 0x14

/* become_reset turns a SYN over IPv6 into the reset that answers it: Linux takes
 * an ICMPv6 error only as a hint while a socket connects, and would learn of the
 * reject a second later. 0: it is one.
 */
static __always_inline int become_reset(struct __sk_buff *skb, const struct packet *p)
{
	struct reset6 r = {};
	struct {
		struct addr src, dst;
		__be32 length, next;
	} pseudo = {
		.src = p->tuple.dst,
		.dst = p->tuple.src,
		.length = bpf_htonl(sizeof(r.tcp)),
		.next = bpf_htonl(IPPROTO_TCP),
	};
	__u32 length = p->l3 + sizeof(r);
	__s64 sum;

	if (load(skb, p->l4, r.tcp))
		return -1;
	r.tcp.ack_seq = bpf_htonl(bpf_ntohl(r.tcp.seq) + 1); /* the SYN counts as one byte */
	r.tcp.seq = 0;
	r.tcp.source = p->tuple.dport;
	r.tcp.dest = p->tuple.sport;
	((__u8 *)&r.tcp)[TCP_FLAGS_AT - 1] = sizeof(r.tcp) / 4 << 4;
	((__u8 *)&r.tcp)[TCP_FLAGS_AT] = TCP_RESET_ACK;
	r.tcp.window = 0;
	r.tcp.urg_ptr = 0;
	r.tcp.check = 0;
	sum = bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	r.tcp.check = fold(bpf_csum_diff(0, 0, (__be32 *)&r.tcp, sizeof(r.tcp), sum));
	r.ip.version = 6;
	r.ip.payload_len = bpf_htons(sizeof(r.tcp));
	r.ip.nexthdr = IPPROTO_TCP;
	r.ip.hop_limit = ERROR_TTL;
	__builtin_memcpy(&r.ip.saddr, &p->tuple.dst, sizeof(r.ip.saddr));
	__builtin_memcpy(&r.ip.daddr, &p->tuple.src, sizeof(r.ip.daddr));
	if (length != skb->len && bpf_skb_change_tail(skb, length, 0))
		return -1;
	return bpf_skb_store_bytes(skb, p->l3, &r, sizeof(r), 0);
}

/* become_error turns the packet into the ICMP error about itself, or into a
 * reset where that does not reach who asks. mtu: that of its way, which it is
 * too large for; 0: nobody takes it. 0: it is one.
 */
static __noinline int become_error(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 quote = p->end - p->l3, most = p->l4 - p->l3 + QUOTED_TRANSPORT;
	__s64 sum = 0;

	if (!mtu && p->ipv6 && p->tuple.protocol == IPPROTO_TCP && p->l4 - p->l3 == sizeof(struct ipv6hdr))
		return become_reset(skb, p);
	if (quote > most)
		quote = most;
	if (p->l3 + quote != skb->len && bpf_skb_change_tail(skb, p->l3 + quote, 0))
		return -1;
	if (quote_sum(skb, p, quote, &sum))
		return -1;
	if (bpf_skb_adjust_room(skb, p->ipv6 ? sizeof(struct error6) : sizeof(struct error4), BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return p->ipv6 ? write_error6(skb, p, mtu, quote, sum) : write_error4(skb, p, mtu, quote, sum);
}

/* swap_macs sends a frame back to where it came from. */
static __always_inline int swap_macs(struct __sk_buff *skb)
{
	__u8 dst[ETH_ALEN], src[ETH_ALEN];

	return load(skb, 0, dst) || load(skb, ETH_ALEN, src) ||
	       bpf_skb_store_bytes(skb, 0, src, ETH_ALEN, 0) || bpf_skb_store_bytes(skb, ETH_ALEN, dst, ETH_ALEN, 0);
}
