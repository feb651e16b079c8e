package packet

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Connections are removed here and not by an LRU table, so that no flood of new
// ones pushes out those that stand.

// tuple is struct tuple of bpf/conn.h.
type tuple struct {
	Src, Dst     [16]byte
	Sport, Dport [2]byte // as on the wire
	Protocol     uint8
	Stage        uint8
	_            [2]uint8
}

// The stages of a tuple.
const (
	stageIn  = 0
	stageOut = 1
)

// conn is struct conn of bpf/conn.h.
type conn struct {
	Src, Dst     [16]byte
	Sport, Dport [2]byte
	Flags        uint8
	Ends         uint8
	_            uint16
	Ifindex      uint32
	Service      uint32
	Generation   uint32
	_            uint32
	Seen         uint64
}

// flags and ends of a conn
const (
	connPrimary    = 1
	connNode       = 2
	connSelf       = 4
	connMasquerade = 8
	connInject     = 16
	connKernel     = 64

	connFIN   = 1
	connReset = 2
)

// statConnectionsFull is STAT_PACKET_CONNECTIONS_FULL of bpf/stats.h.
const statConnectionsFull = 16

// The longest silence of a connection, by what was seen of it. They are those
// of netfilter's conntrack, or shorter where an end was seen.
const (
	tcpOpening     = 60 * time.Second // no answer yet
	tcpEstablished = 24 * time.Hour
	tcpHalfClosed  = time.Hour        // one side has ended
	tcpClosed      = 60 * time.Second // both have, as long as Linux keeps TIME_WAIT
	tcpReset       = 10 * time.Second
	udpOneWay      = 30 * time.Second
	udpTwoWay      = 120 * time.Second
	sctpOpening    = 30 * time.Second
	sctpEstablish  = 210 * time.Second
	sctpClosed     = 10 * time.Second
)

// Where nothing new begins, because another backend serves the node now, this
// one is removed when no connection is left: what is over need not be waited for.
const (
	retiredClosed = 10 * time.Second // both sides have ended, or one has reset it
	retiredUDP    = 30 * time.Second // an answer may come late; what a client sends is a new flow
)

// retiredSilence is silence where nothing new begins.
func retiredSilence(protocol uint8, answered bool, ends, answerEnds uint8) time.Duration {
	limit := silence(protocol, answered, ends, answerEnds)
	switch {
	case limit <= tcpClosed && ends|answerEnds != 0:
		return retiredClosed
	case protocol == unix.IPPROTO_UDP:
		return min(limit, retiredUDP)
	}
	return limit
}

// silence is how long a connection may be silent; answered tells whether any
// packet came back, ends what was seen of the end of each direction.
func silence(protocol uint8, answered bool, ends, answerEnds uint8) time.Duration {
	switch protocol {
	case unix.IPPROTO_TCP:
		switch {
		case (ends|answerEnds)&connReset != 0:
			return tcpReset
		case ends&answerEnds&connFIN != 0:
			return tcpClosed
		case !answered:
			return tcpOpening
		case (ends|answerEnds)&connFIN != 0:
			return tcpHalfClosed
		}
		return tcpEstablished
	case unix.IPPROTO_SCTP:
		switch {
		case ends|answerEnds != 0:
			return sctpClosed
		case !answered:
			return sctpOpening
		}
		return sctpEstablish
	}
	if answered {
		return udpTwoWay
	}
	return udpOneWay
}

// becomes is the tuple of a packet after its entry translated it.
func (t tuple) becomes(c conn, stage uint8) tuple {
	return tuple{Src: c.Src, Dst: c.Dst, Sport: c.Sport, Dport: c.Dport, Protocol: t.Protocol, Stage: stage}
}

// reversed is the tuple of answers.
func (t tuple) reversed(stage uint8) tuple {
	return tuple{Src: t.Dst, Dst: t.Src, Sport: t.Dport, Dport: t.Sport, Protocol: t.Protocol, Stage: stage}
}

// Bounds of a collection.
const (
	collectEvery = 10 * time.Second
	retiredEvery = time.Second
	batchSize    = 2048
	// batchPause follows each batch: collection takes a small part of one
	// processor, and no batch holds a bucket's lock for long.
	batchPause = 2 * time.Millisecond
	// mostBatches bounds one pass, should the table change faster than it is read.
	mostBatches = 1 << 16
)

// collector removes connections that are over.
type collector struct {
	connections *ebpf.Map
	stats       *ebpf.Map
	log         *slog.Logger
	flag        string
	refused     uint64        // connections, at the last pass
	entries     *atomic.Int64 // nil: nobody asks
	retired     *atomic.Bool  // nil: never
	now         func() time.Duration
	keys        []tuple
	values      []conn

	suspects, suspected map[tuple]bool // orphans of this pass and of the last one
}

func newCollector(cfg Config) *collector {
	return &collector{
		connections: cfg.Collection.Maps[mapConnections], stats: cfg.Collection.Maps["stats"], log: cfg.Log, flag: cfg.ConnectionsFlag, entries: cfg.Connections, retired: cfg.Retired, now: monotonic,
		keys: make([]tuple, batchSize), values: make([]conn, batchSize),
	}
}

// monotonic is the clock of the programs' bpf_ktime_get_ns.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot fail; and at 0 nothing is old
	}
	return time.Duration(ts.Nano())
}

// isRetired tells that nothing new begins.
func isRetired(flag *atomic.Bool) bool { return flag != nil && flag.Load() }

func (c *collector) run(ctx context.Context) {
	for {
		pause := collectEvery
		if isRetired(c.retired) {
			pause = retiredEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		removed, err := c.collect(ctx)
		if err != nil {
			c.log.Warn("removing old connections from the connection table", "error", err)
		}
		if removed > 0 {
			c.log.Debug("old connections removed", "connections", removed)
		}
		c.warnIfFull()
	}
}

// collect walks the table once and removes what is over.
func (c *collector) collect(ctx context.Context) (removed int, err error) {
	c.suspects, c.suspected = map[tuple]bool{}, c.suspects
	var seen int64
	var cursor ebpf.MapBatchCursor
	for range mostBatches {
		n, err := c.connections.BatchLookup(&cursor, c.keys, c.values, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if errors.Is(err, unix.ENOSPC) { // a bucket that holds more than a batch
			c.keys, c.values = make([]tuple, 2*len(c.keys)), make([]conn, 2*len(c.values))
			continue
		}
		if err != nil && !last {
			return removed, err
		}
		now := c.now()
		seen += int64(n)
		for i := range n {
			if c.over(c.keys[i], c.values[i], now) {
				c.remove(c.keys[i], c.values[i])
				removed++
			}
		}
		if last {
			if c.entries != nil {
				c.entries.Store(max(seen-int64(removed), 0))
			}
			return removed, nil
		}
		select {
		case <-ctx.Done():
			return removed, nil
		case <-time.After(batchPause):
		}
	}
	return removed, nil
}

// over tells a primary entry whose connection is over, and any other entry
// whose primary one is gone. Entries are looked at together only where the one
// at hand alone is old, which most are not.
func (c *collector) over(key tuple, value conn, now time.Duration) bool {
	idle := func(v conn) time.Duration { return now - time.Duration(v.Seen) }
	if value.Flags&connPrimary == 0 {
		return idle(value) > tcpReset && c.orphan(key, value)
	}
	if idle(value) <= tcpReset {
		return false
	}
	limitOf := silence
	if isRetired(c.retired) {
		limitOf = retiredSilence
	}
	var answers conn
	found := c.connections.Lookup(c.answersOf(key, value), &answers) == nil
	limit := limitOf(key.Protocol, answers.Seen != 0, value.Ends, answers.Ends)
	return idle(value) > limit && (!found || idle(answers) > limit)
}

// answersOf is the key of the entry of answers to a primary one.
func (c *collector) answersOf(key tuple, value conn) tuple {
	if value.Flags&(connNode|connSelf) == connNode {
		return key.becomes(value, 0).reversed(stageIn)
	}
	return key.becomes(value, 0).reversed(stageOut)
}

// orphan tells an entry that leads to no primary one, at two passes in a row: a
// program was stopped between making the two, or they were removed at the same
// time as used. At one pass alone the primary one may be about to come.
func (c *collector) orphan(key tuple, value conn) bool {
	// An entry of answers becomes the reverse of what the client's packet was.
	// Those of a masqueraded connection at egress, and of the answers to it,
	// lead to its primary entry by its entry of answers.
	client := key.becomes(value, 0).reversed(stageIn)
	if c.isPrimary(client) || c.isPrimary(client.at(stageOut)) || c.answersLead(key) || c.answersLead(client) {
		return false
	}
	const mostSuspects = 1 << 16
	if len(c.suspects) < mostSuspects {
		c.suspects[key] = true
	}
	return c.suspected[key]
}

func (t tuple) at(stage uint8) tuple {
	t.Stage = stage
	return t
}

func (c *collector) isPrimary(t tuple) bool {
	var v conn
	return c.connections.Lookup(t, &v) == nil && v.Flags&connPrimary != 0
}

// answersLead tells whether the answers to a packet of this tuple at egress
// lead to a primary entry.
func (c *collector) answersLead(t tuple) bool {
	var v conn
	answers := t.reversed(stageOut)
	return c.connections.Lookup(answers, &v) == nil && c.isPrimary(answers.becomes(v, 0).reversed(stageIn))
}

// remove removes a connection, the primary entry first, or a single orphan.
func (c *collector) remove(key tuple, value conn) {
	del := func(t tuple) { _ = c.connections.Delete(t) } // it may be gone already
	del(key)
	if value.Flags&connPrimary == 0 {
		return
	}
	del(c.answersOf(key, value))
	if value.Flags&connNode != 0 {
		return
	}
	middle := key.becomes(value, stageOut)
	var out conn
	if c.connections.Lookup(middle, &out) == nil {
		del(middle)
		del(middle.becomes(out, 0).reversed(stageIn))
	}
}

// warnIfFull tells of new connections that found the table full since the last pass.
func (c *collector) warnIfFull() {
	if c.stats == nil {
		return
	}
	var perCPU []uint64
	if err := c.stats.Lookup(uint32(statConnectionsFull), &perCPU); err != nil {
		c.log.Warn("reading the counters of the packet path", "error", err)
		return
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	if sum > c.refused {
		c.log.Warn("the connection table was full: new connections were dropped, those that stand go on",
			"connections", sum-c.refused, "entries", c.connections.MaxEntries(), "setting", c.flag)
	}
	c.refused = sum
}
