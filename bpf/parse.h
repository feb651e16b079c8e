/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to who talks to whom. A packet is parsed by reading copies of its
 * headers, so that it may lie in memory in any pieces. What is cut short, bent
 * or of a kind that no Service has is not ours: the stack judges it.
 */
#pragma once

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "conn.h"

/* What parse made of a packet. */
enum parsed {
	PARSED,		/* packet is filled in */
	PARSED_ERROR,	/* so it is, and it is an ICMP error about another packet */
	PARSED_FOREIGN,	/* no IP, or a protocol that no Service has */
	PARSED_BAD,	/* cut short, or a header that cannot be */
};

enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,	/* has the ports */
	FRAGMENT_LATER,	/* has none: they are remembered from the first one */
	FRAGMENT_LOST,	/* a later one whose first one was not seen */
};

/* A packet as parsed. Ports are 0 where the protocol has none. */
struct packet {
	struct tuple tuple;
	__u32 l3, l4;	/* offsets of the network and the transport header */
	__u32 end;	/* offset after the last byte */
	__u32 fragment_id;
	__u8 ipv6;
	__u8 fragment;	/* enum fragment */
	__u8 opens;	/* may open a connection: SYN, INIT, any UDP */
	__u8 ends;	/* CONN_FIN or CONN_RESET */
	__u8 inner;	/* part of an ICMP error: only the start is there */
	__u8 whole;	/* must not be cut into fragments on its way */
	__u8 pad[2];
};

#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_FRAGMENT_OFFSET 0xfff8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define SCTP_HEADER 12
#define SCTP_INIT 1
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN_COMPLETE 14

#define ICMP4_UNREACHABLE 3
#define ICMP4_TIME_EXCEEDED 11
#define ICMP4_PARAMETER 12
#define ICMP6_UNREACHABLE 1
#define ICMP6_TOO_BIG 2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_PARAMETER 4
#define ICMP_HEADER 8

/* load copies bytes of a packet. */
#define load(skb, at, to) bpf_skb_load_bytes(skb, at, &(to), sizeof(to))

/* parse_tcp, parse_udp and parse_sctp read the ports and what the packet does
 * to its connection. Of a packet inside an ICMP error only 8 bytes are sure.
 */
static __always_inline enum parsed parse_tcp(struct __sk_buff *skb, struct packet *p)
{
	struct tcphdr tcp;
	__u8 flags;

	if (p->inner) {
		if (load(skb, p->l4, p->tuple.sport) || load(skb, p->l4 + 2, p->tuple.dport))
			return PARSED_BAD;
		return PARSED;
	}
	if (p->l4 + sizeof(tcp) > p->end || load(skb, p->l4, tcp))
		return PARSED_BAD;
	if (tcp.doff < 5 || p->l4 + tcp.doff * 4 > p->end)
		return PARSED_BAD;
	p->tuple.sport = tcp.source;
	p->tuple.dport = tcp.dest;
	flags = ((__u8 *)&tcp)[13];
	p->opens = (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	p->ends = (flags & TCP_RST ? CONN_RESET : 0) | (flags & TCP_FIN ? CONN_FIN : 0);
	return PARSED;
}

static __always_inline enum parsed parse_udp(struct __sk_buff *skb, struct packet *p)
{
	struct udphdr udp;
	__u32 length;

	if (load(skb, p->l4, udp))
		return PARSED_BAD;
	length = bpf_ntohs(udp.len);
	/* A first fragment has less than the datagram's length, and a jumbogram 0. */
	if (!p->inner && (p->l4 + sizeof(udp) > p->end ||
			  (length && length < sizeof(udp)) ||
			  (p->fragment == FRAGMENT_NONE && p->l4 + length > p->end)))
		return PARSED_BAD;
	p->tuple.sport = udp.source;
	p->tuple.dport = udp.dest;
	p->opens = 1;
	return PARSED;
}

static __always_inline enum parsed parse_sctp(struct __sk_buff *skb, struct packet *p)
{
	__u8 chunk;

	if (load(skb, p->l4, p->tuple.sport) || load(skb, p->l4 + 2, p->tuple.dport))
		return PARSED_BAD;
	if (p->inner)
		return PARSED;
	/* At least one chunk, of at least its own header. */
	if (p->l4 + SCTP_HEADER + 4 > p->end || load(skb, p->l4 + SCTP_HEADER, chunk))
		return PARSED_BAD;
	p->opens = chunk == SCTP_INIT;
	p->ends = chunk == SCTP_ABORT ? CONN_RESET : chunk == SCTP_SHUTDOWN_COMPLETE ? CONN_FIN : 0;
	return PARSED;
}

static __always_inline enum parsed parse_icmp(struct __sk_buff *skb, struct packet *p)
{
	__u8 type;

	if (p->l4 + ICMP_HEADER > p->end || load(skb, p->l4, type))
		return PARSED_BAD;
	if (p->ipv6) {
		if (type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER)
			return PARSED_ERROR;
		/* Neighbour discovery and other talk of the link is not ours; 128 is echo. */
		return type == 128 ? PARSED : PARSED_FOREIGN;
	}
	if (type == ICMP4_UNREACHABLE || type == ICMP4_TIME_EXCEEDED || type == ICMP4_PARAMETER)
		return PARSED_ERROR;
	return type == 8 ? PARSED : PARSED_FOREIGN;
}

/* fragment_ports remembers the ports of a first fragment for the later ones. */
static __always_inline void fragment_ports(struct packet *p)
{
	struct fragment_key key = {};
	struct fragment_ports *known, ports = {};

	key.src = p->tuple.src;
	key.dst = p->tuple.dst;
	key.id = p->fragment_id;
	key.protocol = p->tuple.protocol;
	if (p->fragment == FRAGMENT_FIRST) {
		ports.sport = p->tuple.sport;
		ports.dport = p->tuple.dport;
		/* Least recently used goes: the table is never full. */
		bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
		return;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known) {
		p->fragment = FRAGMENT_LOST;
		return;
	}
	p->tuple.sport = known->sport;
	p->tuple.dport = known->dport;
}

static __always_inline enum parsed parse_transport(struct __sk_buff *skb, struct packet *p)
{
	enum parsed is = PARSED_FOREIGN;

	if (p->fragment == FRAGMENT_LATER) {
		if (p->inner)
			return PARSED_FOREIGN; /* an error about a later fragment names no ports */
		switch (p->tuple.protocol) {
		case IPPROTO_TCP:
		case IPPROTO_UDP:
		case IPPROTO_SCTP:
			fragment_ports(p);
			return PARSED;
		}
		return PARSED_FOREIGN;
	}
	switch (p->tuple.protocol) {
	case IPPROTO_TCP:
		is = parse_tcp(skb, p);
		break;
	case IPPROTO_UDP:
		is = parse_udp(skb, p);
		break;
	case IPPROTO_SCTP:
		is = parse_sctp(skb, p);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((p->tuple.protocol == IPPROTO_ICMPV6) != p->ipv6 || p->inner || p->fragment)
			return PARSED_FOREIGN;
		return parse_icmp(skb, p);
	}
	if (is == PARSED && p->fragment == FRAGMENT_FIRST && !p->inner)
		fragment_ports(p);
	return is;
}

static __always_inline enum parsed parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	__u32 header, length, fragment;

	if (load(skb, p->l3, ip))
		return PARSED_BAD;
	header = ip.ihl * 4;
	/* 0: more than 65,535 bytes, as the stack joins segments of one stream. */
	length = bpf_ntohs(ip.tot_len);
	if (!length && skb->gso_segs > 1)
		length = skb->len - p->l3;
	if (ip.version != 4 || header < sizeof(ip) || length < header)
		return PARSED_BAD;
	p->end = p->l3 + length;
	if (!p->inner && p->end > skb->len)
		return PARSED_BAD;
	p->l4 = p->l3 + header;
	addr_from_v4(&p->tuple.src, ip.saddr);
	addr_from_v4(&p->tuple.dst, ip.daddr);
	p->tuple.protocol = ip.protocol;
	fragment = bpf_ntohs(ip.frag_off);
	p->fragment_id = ip.id;
	p->whole = (fragment & IPV4_DONT_FRAGMENT) != 0;
	if (fragment & IPV4_FRAGMENT_OFFSET)
		p->fragment = FRAGMENT_LATER;
	else if (fragment & IPV4_MORE_FRAGMENTS)
		p->fragment = FRAGMENT_FIRST;
	return parse_transport(skb, p);
}

/* skip_extensions goes to the transport header of an IPv6 packet. */
static __always_inline enum parsed skip_extensions(struct __sk_buff *skb, struct packet *p, __u8 next)
{
	/* Each kind of header begins with the next one's protocol. */
	struct {
		__u8 next;
		__u8 length;	/* a fragment header: reserved */
		__be16 offset;	/* of a fragment header; of a routing header type and segments left */
		__be32 id;
	} header;

	for (int i = 0; i <= MAX_EXTENSION_HEADERS; i++) {
		switch (next) {
		case IPPROTO_ROUTING:
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
			if (load(skb, p->l4, header))
				return PARSED_BAD;
			/* With segments left the destination is only a stop on the way. */
			if (next == IPPROTO_ROUTING && (bpf_ntohs(header.offset) & 0xff))
				return PARSED_FOREIGN;
			p->l4 += (header.length + 1) * 8;
			break;
		case IPPROTO_FRAGMENT:
			if (p->fragment || load(skb, p->l4, header))
				return PARSED_BAD;
			p->fragment_id = header.id;
			if (bpf_ntohs(header.offset) & IPV6_FRAGMENT_OFFSET)
				p->fragment = FRAGMENT_LATER;
			else if (bpf_ntohs(header.offset) & IPV6_MORE_FRAGMENTS)
				p->fragment = FRAGMENT_FIRST;
			p->l4 += sizeof(header);
			/* What follows in a later fragment is no header. */
			if (p->fragment == FRAGMENT_LATER) {
				p->tuple.protocol = header.next;
				return PARSED;
			}
			break;
		default:
			p->tuple.protocol = next;
			return PARSED;
		}
		next = header.next;
		if (!p->inner && p->l4 > p->end)
			return PARSED_BAD;
	}
	return PARSED_FOREIGN;
}

static __always_inline enum parsed parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	__u32 length;

	if (load(skb, p->l3, ip))
		return PARSED_BAD;
	length = bpf_ntohs(ip.payload_len);
	if (!length && skb->gso_segs > 1)
		length = skb->len - p->l3 - sizeof(ip);
	p->l4 = p->l3 + sizeof(ip);
	p->end = p->l4 + length;
	if (ip.version != 6 || (!p->inner && p->end > skb->len))
		return PARSED_BAD;
	p->ipv6 = 1;
	p->whole = 1;
	__builtin_memcpy(&p->tuple.src, &ip.saddr, sizeof(p->tuple.src));
	__builtin_memcpy(&p->tuple.dst, &ip.daddr, sizeof(p->tuple.dst));
	if (skip_extensions(skb, p, ip.nexthdr) == PARSED)
		return parse_transport(skb, p);
	return PARSED_FOREIGN;
}

/* parse parses the packet that begins at l3; inner: one inside an ICMP error. */
static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *p, __u32 l3, __u8 ipv6, __u8 inner)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->l3 = l3;
	p->inner = inner;
	return ipv6 ? parse_ipv6(skb, p) : parse_ipv4(skb, p);
}
