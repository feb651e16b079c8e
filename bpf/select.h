/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a destination and a client to an endpoint. The socket hooks ask choose()
 * once per new connection or flow. */
#pragma once

#include "maps.h"
#include "stats.h"

/* Who asks. A pod is CLIENT_POD only where the node can tell its pods. */
enum client_kind {
	CLIENT_OUTSIDE,
	CLIENT_POD,
	CLIENT_NODE,
};

enum verdict {
	VERDICT_NONE,    /* left to packets */
	VERDICT_FORWARD, /* to the answer's endpoint */
	VERDICT_AGAIN,   /* inside this file: an update overtook the lookup */
};

struct request {
	struct frontend_key to;
	__u32 kind;  /* enum client_kind */
	__u64 netns; /* cookie of the client's network namespace */
};

struct answer {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 service;
	__u32 index; /* in the pool: a hint for still_serves */
};

static __always_inline bool is_node_address(const struct addr *a)
{
	struct addr key = *a;

	if (addr_is_v4(a) && addr_is_loopback(a))
		key.w[3] = bpf_htonl(0x7f000000);
	return bpf_map_lookup_elem(&node_addresses, &key) != NULL;
}

/* Reads one element of frontends. false: there is none, or it was overwritten. */
static __always_inline bool read_frontend(const struct frontend_key *key, struct frontend *out)
{
	const struct frontend *f = bpf_map_lookup_elem(&frontends, key);

	if (!f)
		return false;
	*out = *f;
	barrier();
	return out->check == frontend_check(key, out);
}

/* Finds the frontend of a destination, NodePorts second. */
static __always_inline bool find_frontend(const struct frontend_key *to, struct frontend *out)
{
	struct frontend_key key = *to;

	if (read_frontend(&key, out))
		return true;
	if (!is_node_address(&to->addr))
		return false;
	addr_unspecified_like(&key.addr, &to->addr);
	key.kind = FRONTEND_NODEPORT;
	return read_frontend(&key, out);
}

/* Reads one slot. false: an update overtook the lookup. */
static __always_inline bool read_slot(const struct slot_key *key, struct place *out)
{
	const struct slot *s = bpf_map_lookup_elem(&slots, key);
	__u32 check;

	if (!s)
		return false;
	*out = s->place;
	check = s->check;
	barrier();
	return check == slot_check(key, out);
}

static __always_inline int place_compare(const struct place *s, const struct addr *addr, __be16 port)
{
	int c = addr_compare(&s->addr, addr);

	if (c == 0 && s->port != port)
		c = bpf_ntohs(s->port) < bpf_ntohs(port) ? -1 : 1;
	return c;
}

/* Finds an endpoint in a pool. key names service and generation; it is left at
 * the slot that was read last. VERDICT_FORWARD: found; VERDICT_NONE: not there. */
static __noinline enum verdict find_slot(struct slot_key *key, const struct pool *pool, const struct affinity *wanted,
					 struct place *out)
{
	__u32 low = 0, high = pool->count;

	if (wanted->index < high) { /* it is where it was, most of the time */
		key->slot = pool->first + wanted->index;
		if (!read_slot(key, out))
			return VERDICT_AGAIN;
		if (place_compare(out, &wanted->addr, wanted->port) == 0)
			return VERDICT_FORWARD;
	}
	for (int i = 0; i < MAX_SEARCH_STEPS && low < high; i++) {
		__u32 middle = low + (high - low) / 2;
		int c;

		key->slot = pool->first + middle;
		if (!read_slot(key, out))
			return VERDICT_AGAIN;
		c = place_compare(out, &wanted->addr, wanted->port);
		if (c == 0)
			return VERDICT_FORWARD;
		if (c < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return VERDICT_NONE;
}

/* Finds the endpoint that this client had last. VERDICT_NONE: it had none, it
 * is not in the pool any more, or the time is over. */
static __always_inline enum verdict remembered(const struct affinity_key *client, __u64 timeout_ns,
					       struct slot_key *key, const struct pool *pool, struct place *out)
{
	const struct affinity *a = bpf_map_lookup_elem(&affinity, client);
	struct affinity copy;

	if (!a)
		return VERDICT_NONE;
	copy = *a;
	if (bpf_ktime_get_ns() - copy.used >= timeout_ns)
		return VERDICT_NONE;
	return find_slot(key, pool, &copy, out);
}

static __always_inline void remember(const struct affinity_key *client, const struct place *s, __u32 index)
{
	struct affinity value = {
		.used = bpf_ktime_get_ns(),
		.addr = s->addr,
		.port = s->port,
		.index = index,
	};

	if (bpf_map_update_elem(&affinity, client, &value, BPF_ANY))
		count(STAT_AFFINITY_FULL);
}

/* What pick() and still_serves() need of a Service port's master entry. */
struct master {
	__u32 generation;
	__u32 affinity_s;
	struct pool pool;
};

/* Reads the master entry. false: there is none, or it was overwritten. */
static __always_inline bool read_master(__u32 id, __u32 pool_index, struct master *out)
{
	const struct service *svc = bpf_map_lookup_elem(&services, &id);

	if (!svc)
		return false;
	pool_index &= MAX_POOLS - 1;
	out->generation = svc->generation;
	out->affinity_s = svc->affinity_s;
	out->pool = svc->pools[pool_index];
	barrier();
	return out->pool.check == pool_check(id, out->generation, out->affinity_s, &out->pool);
}

/* Picks an endpoint of one pool of a Service port. */
static __always_inline enum verdict pick(__u32 id, __u32 pool_index, __u64 netns, struct answer *out)
{
	struct affinity_key who = {.netns = netns, .service = id};
	struct slot_key key = {.service = id};
	enum verdict v = VERDICT_NONE;
	struct master m;
	struct place slot;

	if (!read_master(id, pool_index, &m))
		return VERDICT_AGAIN;
	if (m.pool.count == 0) {
		count(STAT_LEFT_EMPTY);
		return VERDICT_NONE;
	}
	key.generation = m.generation;
	if (m.affinity_s)
		v = remembered(&who, m.affinity_s * NSEC_PER_SEC, &key, &m.pool, &slot);
	if (v == VERDICT_NONE) {
		key.slot = m.pool.first + (__u32)((__u64)bpf_get_prandom_u32() * m.pool.count >> 32);
		v = read_slot(&key, &slot) ? VERDICT_FORWARD : VERDICT_AGAIN;
	}
	if (v != VERDICT_FORWARD)
		return v;
	out->addr = slot.addr;
	out->port = slot.port;
	out->service = id;
	out->index = key.slot - m.pool.first;
	if (m.affinity_s)
		remember(&who, &slot, out->index);
	return v;
}

static __always_inline enum verdict choose_once(const struct request *r, struct answer *out)
{
	struct frontend f;

	if (!find_frontend(&r->to, &f))
		return VERDICT_NONE;
	return pick(f.service, r->kind == CLIENT_OUTSIDE ? f.pool : f.inside, r->netns, out);
}

/* Chooses an endpoint for a new connection or flow; never VERDICT_AGAIN. */
static __noinline enum verdict choose(const struct request *r, struct answer *out)
{
	for (int i = 0; i < MAX_SELECT_TRIES; i++) {
		enum verdict v = choose_once(r, out);

		if (v == VERDICT_AGAIN)
			continue;
		if (v == VERDICT_FORWARD)
			count(STAT_FORWARDED);
		return v;
	}
	count(STAT_LEFT_OVERTAKEN);
	return VERDICT_NONE;
}

static __always_inline enum verdict serves_once(const struct request *r, const struct affinity *endpoint)
{
	struct slot_key key = {};
	struct frontend f;
	struct master m;
	struct place slot;

	if (!find_frontend(&r->to, &f))
		return VERDICT_NONE;
	if (!read_master(f.service, r->kind == CLIENT_OUTSIDE ? f.pool : f.inside, &m))
		return VERDICT_AGAIN;
	key.service = f.service;
	key.generation = m.generation;
	return find_slot(&key, &m.pool, endpoint, &slot);
}

/* Whether an endpoint (index is a hint) is still in the pool that this client
 * of a frontend is served from. */
static __noinline bool still_serves(const struct request *r, const struct affinity *endpoint)
{
	enum verdict v = VERDICT_AGAIN;

	for (int i = 0; i < MAX_SELECT_TRIES && v == VERDICT_AGAIN; i++)
		v = serves_once(r, endpoint);
	return v == VERDICT_FORWARD;
}
