package load

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Probe asks over new UDP sockets, again and again, until the wanted server
// answers. UDP, because a TCP connect whose SYN was dropped waits a second.
type Probe struct {
	Targets []netip.AddrPort // all of them have to answer
	Want    byte             // the server's id; 0: any
	Timeout time.Duration
}

// Pauses of a probe: for an answer, and before it asks again. Without one after an
// answer of the wrong server, the probe and that server would keep busy a processor
// that the API server and the proxy under test need.
const (
	answerTime = time.Millisecond
	pause      = 300 * time.Microsecond
)

// probe tells when the answer came, on the clock that Now reads.
func probe(p Probe) (time.Duration, error) {
	end := Now() + p.Timeout
	var at time.Duration
	for _, to := range p.Targets {
		for {
			id, ok := probeOnce(to)
			at = Now()
			if ok && (p.Want == 0 || p.Want == id) {
				break
			}
			if at > end {
				return 0, fmt.Errorf("%s did not answer as it should within %s", to, p.Timeout)
			}
			rest()
		}
	}
	return at, nil
}

// rest pauses. The runtime's own timers would make a millisecond of it.
func rest() {
	pause := unix.NsecToTimespec(int64(pause))
	_ = unix.Nanosleep(&pause, nil) // a signal may cut it short
}

func probeOnce(to netip.AddrPort) (id byte, ok bool) {
	fd, err := connect(unix.SOCK_DGRAM, to, time.Second)
	if err != nil {
		return 0, false
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, messageSize)
	if writeAll(fd, buf) != nil {
		return 0, false
	}
	wait := unix.NsecToTimespec(int64(answerTime))
	n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &wait, nil)
	if err != nil || n == 0 {
		return 0, false
	}
	if readAll(fd, buf) != nil {
		return 0, false
	}
	return buf[0], true
}

// Turnover asks over new UDP sockets while endpoints of a Service replace others.
type Turnover struct {
	Target  netip.AddrPort
	New     byte   // the id of servers that have to answer
	Old     []byte // the ids of those that no longer may
	Timeout time.Duration
}

// TurnedOver is when what was awaited came, on the clock that Now reads.
type TurnedOver struct {
	New time.Duration // the first answer by a new server
	Old time.Duration // the last one by an old server; 0: there was none
}

// turnover asks until a new server has answered, and none of the old ones did so
// many times in a row: where one in ten endpoints is old, chance does not do that.
func turnover(t Turnover) (at TurnedOver, err error) {
	const enough = 300
	end := Now() + t.Timeout
	for quiet := 0; at.New == 0 || quiet < enough; rest() {
		id, ok := probeOnce(t.Target)
		now := Now()
		switch {
		case now > end:
			return at, fmt.Errorf("%s did not lead to the new endpoints alone within %s", t.Target, t.Timeout)
		case !ok:
			continue
		case slices.Contains(t.Old, id):
			at.Old, quiet = now, 0
			continue
		case id == t.New && at.New == 0:
			at.New = now
		}
		quiet++
	}
	return at, nil
}
