/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New addresses and ports for a packet, with every checksum right, whether the
 * packet carries one already or a device fills it in later. */
#pragma once

#include "parse.h"

#define IPV4_CHECKSUM 10
#define IPV4_ADDRESSES 12
#define IPV6_ADDRESSES 8
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define SCTP_CHECKSUM 8
#define ICMP_CHECKSUM 2

/* Set at load time from 6.16 on: BPF_F_IPV6, which keeps the sums of devices
 * that check all of a packet (CHECKSUM_COMPLETE) right. Older kernels then sum
 * up the packet themselves. */
const volatile __u64 ipv6_checksum_flag = 0;

/* CRC32c is linear: the checksum of a packet with other ports differs from the
 * old one by the CRC of the ports' difference, moved on over the bytes behind
 * them. sctp_powers[k] is x^(8 * 2^k) in the field of the CRC (bits reversed),
 * which moves it on by 2^k bytes. So no payload is read.
 */
#define CRC32C 0x82f63b78
static const __u32 sctp_powers[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c,
	0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* crc_multiply multiplies two polynomials modulo the CRC's. */
static __always_inline __u32 crc_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= a & (1u << (31 - i)) ? b : 0;
		b = b & 1 ? (b >> 1) ^ CRC32C : b >> 1;
	}
	return product;
}

/* crc_difference is the difference that other ports make to a packet's CRC.
 * It is a function of its own, so that the verifier sees it once.
 */
__noinline __u32 crc_difference(__u32 ports, __u32 behind)
{
	__u32 crc = ports;

	for (int i = 0; i < 32; i++)
		crc = crc & 1 ? (crc >> 1) ^ CRC32C : crc >> 1;
	for (__u32 k = 0; k < 16; k++)
		if (behind >> k & 1)
			crc = crc_multiply(crc, sctp_powers[k]);
	return crc;
}

/* rewrite_sctp keeps the checksum of an SCTP packet whose ports change. */
static __always_inline int rewrite_sctp(struct __sk_buff *skb, const struct packet *p, const struct tuple *to)
{
	__u32 old_ports, new_ports, checksum;

	old_ports = p->tuple.sport | (__u32)p->tuple.dport << 16;
	new_ports = to->sport | (__u32)to->dport << 16;
	if (old_ports == new_ports)
		return 0;
	if (load(skb, p->l4 + SCTP_CHECKSUM, checksum))
		return -1;
	/* 0: a device fills it in. Little endian, alone of all fields. */
	if (!checksum)
		return 0;
	checksum ^= crc_difference(old_ports ^ new_ports, (p->end - p->l4 - 4) & 0xffff);
	return bpf_skb_store_bytes(skb, p->l4 + SCTP_CHECKSUM, &checksum, sizeof(checksum), 0);
}

/* rewrite_transport writes ports and checksum. addresses: sum of the
 * difference that the addresses make.
 */
static __always_inline int rewrite_transport(struct __sk_buff *skb, const struct packet *p, const struct tuple *to, __s64 addresses)
{
	__u32 old_ports, new_ports;
	__u64 flags = p->ipv6 ? ipv6_checksum_flag : 0;
	__u32 at;
	__s64 ports;

	switch (p->tuple.protocol) {
	case IPPROTO_TCP:
		at = p->l4 + TCP_CHECKSUM;
		break;
	case IPPROTO_UDP:
		at = p->l4 + UDP_CHECKSUM;
		flags |= BPF_F_MARK_MANGLED_0;
		break;
	case IPPROTO_SCTP:
		if (rewrite_sctp(skb, p, to))
			return -1;
		goto write;
	default:
		return 0;
	}
	old_ports = p->tuple.sport | (__u32)p->tuple.dport << 16;
	new_ports = to->sport | (__u32)to->dport << 16;
	ports = bpf_csum_diff(&old_ports, sizeof(old_ports), &new_ports, sizeof(new_ports), 0);
	if (bpf_l4_csum_replace(skb, at, 0, addresses, flags | BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(skb, at, 0, ports, flags & BPF_F_MARK_MANGLED_0))
		return -1;
write:
	return bpf_skb_store_bytes(skb, p->l4, &to->sport, 2, 0) || bpf_skb_store_bytes(skb, p->l4 + 2, &to->dport, 2, 0);
}

/* write_addresses writes the addresses of the network header at l3. */
static __always_inline int write_addresses(struct __sk_buff *skb, const struct packet *p, const struct addr *src, const struct addr *dst, __s64 difference)
{
	if (p->ipv6)
		return bpf_skb_store_bytes(skb, p->l3 + IPV6_ADDRESSES, src, sizeof(*src), 0) ||
		       bpf_skb_store_bytes(skb, p->l3 + IPV6_ADDRESSES + 16, dst, sizeof(*dst), 0);
	return bpf_skb_store_bytes(skb, p->l3 + IPV4_ADDRESSES, &src->w[3], 4, 0) ||
	       bpf_skb_store_bytes(skb, p->l3 + IPV4_ADDRESSES + 4, &dst->w[3], 4, 0) ||
	       bpf_l3_csum_replace(skb, p->l3 + IPV4_CHECKSUM, 0, difference, 0);
}

/* addresses_difference is the sum of the difference between two pairs of
 * addresses. The common start of IPv4-mapped ones cancels out.
 */
static __always_inline __s64 addresses_difference(const struct tuple *from, const struct tuple *to)
{
	return bpf_csum_diff((__be32 *)&from->src, 2 * sizeof(struct addr), (__be32 *)&to->src, 2 * sizeof(struct addr), 0);
}

/* rewrite gives a packet the addresses and ports of to. 0: done. */
static __noinline int rewrite(struct __sk_buff *skb, const struct packet *p, const struct tuple *to)
{
	__s64 difference = addresses_difference(&p->tuple, to);

	if (p->fragment != FRAGMENT_LATER && rewrite_transport(skb, p, to, difference))
		return -1;
	return write_addresses(skb, p, &to->src, &to->dst, difference);
}

/* rewrite_error gives an ICMP error the addresses outer, and the packet inside
 * it the addresses and ports of to. The inner transport checksum stays as it
 * is: it is that of another packet, often cut off, and nobody verifies it.
 */
static __noinline int rewrite_error(struct __sk_buff *skb, const struct packet *p, const struct tuple *outer,
				    const struct packet *inner, const struct tuple *to)
{
	__s64 outside = addresses_difference(&p->tuple, outer), inside = addresses_difference(&inner->tuple, to);
	__u32 old_ports = inner->tuple.sport | (__u32)inner->tuple.dport << 16;
	__u32 new_ports = to->sport | (__u32)to->dport << 16;
	__u32 at = p->l4 + ICMP_CHECKSUM;
	__s64 ports = bpf_csum_diff(&old_ports, sizeof(old_ports), &new_ports, sizeof(new_ports), 0);

	if (bpf_l4_csum_replace(skb, at, 0, ports, 0))
		return -1;
	/* The checksum of an inner IPv4 header takes up what its addresses change. */
	if (p->ipv6 && (bpf_l4_csum_replace(skb, at, 0, inside, 0) ||
			bpf_l4_csum_replace(skb, at, 0, outside, BPF_F_PSEUDO_HDR | ipv6_checksum_flag)))
		return -1;
	if (bpf_skb_store_bytes(skb, inner->l4, &to->sport, 2, 0) || bpf_skb_store_bytes(skb, inner->l4 + 2, &to->dport, 2, 0))
		return -1;
	return write_addresses(skb, inner, &to->src, &to->dst, inside) ||
	       write_addresses(skb, p, &outer->src, &outer->dst, outside);
}
