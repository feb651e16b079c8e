// Package load makes TCP and UDP traffic and times it.
//
// A Session holds its sockets and sends the next request when the last is answered.
// It works in slices, so that the sessions of several proxies can take turns.
// Client and server call the kernel directly, with blocking sockets: what is
// timed is the kernel's way to the endpoint and back, not a poller's.
package load

import (
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// Kind is what a session does again and again.
type Kind string

// The kinds of sessions.
const (
	Requests    Kind = "TCP requests, one connection"
	Connections Kind = "new TCP connections with a request each"
	UDPRequests Kind = "UDP requests, one connected socket"
	UDPBatches  Kind = "UDP datagrams, one unconnected socket"
	UDPFlows    Kind = "new UDP flows with a request each"
	Throughput  Kind = "throughput of one TCP stream"
	Connects    Kind = "TCP connects"
)

// Ports of the servers.
const (
	EchoPort = 8080 // TCP and UDP: answers what it is sent
	BulkPort = 8081 // TCP: answers one byte for each bulk of bytes
)

const (
	messageSize = 64      // bytes of a request and of its answer
	batchSize   = 32      // datagrams of a batch
	bulkSize    = 1 << 20 // bytes of one operation of Throughput
)

// patience is how long one request may take before it is an error.
const patience = 2 * time.Second

// Operations is how many of what a report counts one operation of a session is:
// datagrams of a batch, bytes of a bulk.
func (k Kind) Operations() float64 {
	switch k {
	case UDPBatches:
		return batchSize
	case Throughput:
		return bulkSize
	}
	return 1
}

// Job says what a session does.
type Job struct {
	Kind    Kind
	Targets []netip.AddrPort // taken in turn; all but Connects have one
}

// Slice is what a session did in a while.
type Slice struct {
	Done int           // operations
	Took time.Duration // their times, added up
}

// Each is how long one operation took, in microseconds.
func (s Slice) Each() float64 { return s.Took.Seconds() * 1e6 / float64(s.Done) }

// NewHistogram holds nanoseconds up to a minute, to three digits.
func NewHistogram() *hdrhistogram.Histogram {
	const digits = 3
	return hdrhistogram.New(1, int64(time.Minute), digits)
}

// Now is the machine's monotonic clock, which all its processes share.
func Now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail on Linux
	return time.Duration(t.Nano())
}
