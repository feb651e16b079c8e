// Package load makes TCP and UDP traffic, open and closed loop, and times it.
//
// Client and server call the kernel directly, with blocking sockets: what is
// timed is the kernel's way to the endpoint and back, not a poller's. A closed
// loop sends the next request when the last is answered. An open loop sends by
// the clock and times each request from when it was due, so that a pause of
// the path counts for all requests that it held up (coordinated omission).
package load

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Kind is what a Job does.
type Kind string

// The kinds of jobs.
const (
	RequestResponse Kind = "request/response over one TCP connection, closed loop"
	OpenLoop        Kind = "requests over one TCP connection at a fixed rate"
	ConnectRate     Kind = "connect, one request, close"
	Dial            Kind = "connect to each target once"
	UDPResponse     Kind = "request/response over one UDP socket, closed loop"
	UDPFlood        Kind = "datagrams from one UDP socket as fast as it can"
)

// Ports of the servers.
const (
	EchoPort = 8080 // TCP and UDP
	SinkPort = 8081 // UDP, counts and answers nothing
)

// messageSize is the bytes of a request and of its answer.
const messageSize = 64

// patience is how long one request may take before it is an error.
const patience = 2 * time.Second

// Job is traffic to make.
type Job struct {
	Kind     Kind
	Targets  []netip.AddrPort // just one, except for Dial
	Workers  int              // of ConnectRate; 0: one
	Rate     int              // of OpenLoop: requests a second
	Duration time.Duration
	Timeout  time.Duration // of one request; 0: two seconds
}

// Outcome is what became of a Job.
type Outcome struct {
	Requests int // answered; of UDPFlood: sent
	Failed   int
	Error    string // of the first that failed
	Took     time.Duration
	Times    *hdrhistogram.Snapshot // of answered requests, in nanoseconds
}

// Histogram is the times of answered requests.
func (o *Outcome) Histogram() *hdrhistogram.Histogram {
	if o.Times == nil {
		return NewHistogram()
	}
	return hdrhistogram.Import(o.Times)
}

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

// run does a job.
func run(j Job) (*Outcome, error) {
	if len(j.Targets) == 0 {
		return nil, fmt.Errorf("%s: no target", j.Kind)
	}
	if j.Timeout == 0 {
		j.Timeout = netlab.Patient(patience)
	}
	r := &recorder{times: NewHistogram(), begin: Now()}
	end := r.begin + j.Duration
	var err error
	switch j.Kind {
	case RequestResponse:
		err = requestResponse(r, j)
	case OpenLoop:
		err = openLoop(r, j)
	case ConnectRate:
		connectRate(r, j, end)
	case Dial:
		dialEach(r, j)
	case UDPResponse:
		err = udpResponse(r, j)
	case UDPFlood:
		err = udpFlood(r, j, end)
	default:
		err = fmt.Errorf("there are no jobs %q", j.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, to %s: %w", j.Kind, j.Targets[0], err)
	}
	return r.outcome(Now() - r.begin), nil
}
