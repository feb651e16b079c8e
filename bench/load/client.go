package load

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// requestResponse asks over one connection.
func requestResponse(r *recorder, j Job) error {
	fd, err := connect(unix.SOCK_STREAM, j.Targets[0], j.Timeout)
	if err != nil {
		return err
	}
	defer func() { _ = reset(fd) }()
	return loop(r, fd, j.Duration)
}

func udpResponse(r *recorder, j Job) error {
	fd, err := connect(unix.SOCK_DGRAM, j.Targets[0], j.Timeout)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return loop(r, fd, j.Duration)
}

// loop is a closed loop over one socket. The time counts from when the first
// request, which finds the way, was answered.
func loop(r *recorder, fd int, duration time.Duration) error {
	buf := make([]byte, messageSize)
	if err := ask(fd, buf); err != nil {
		return err
	}
	r.begin = Now()
	for at := r.begin; at < r.begin+duration; {
		if err := ask(fd, buf); err != nil {
			return err
		}
		now := Now()
		r.answered(now - at)
		at = now
	}
	return nil
}

// openLoop sends by the clock over one connection; answers come in order.
func openLoop(r *recorder, j Job) error {
	fd, err := connect(unix.SOCK_STREAM, j.Targets[0], j.Timeout)
	if err != nil {
		return err
	}
	defer func() { _ = reset(fd) }()
	if err := ask(fd, make([]byte, messageSize)); err != nil {
		return err
	}
	interval := time.Second / time.Duration(max(j.Rate, 1))
	n := int(j.Duration / interval)
	start := Now() + interval
	due := func(i int) time.Duration { return start + time.Duration(i)*interval }
	sent := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		buf := make([]byte, messageSize)
		for i := range n {
			waitUntil(due(i))
			if err := writeAll(fd, buf); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	buf := make([]byte, messageSize)
	for i := range n {
		if err := readAll(fd, buf); err != nil {
			return err
		}
		r.answered(Now() - due(i))
	}
	return <-sent
}

// waitUntil sleeps to a time of the monotonic clock. Go's own timers may be a
// millisecond late.
func waitUntil(t time.Duration) {
	ts := unix.NsecToTimespec(int64(t))
	// 1 ns of slack in place of 50 µs, for this thread alone.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	for Now() < t {
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) // EINTR: again
	}
}

// connectRate opens connections until end, each for one request.
func connectRate(r *recorder, j Job, end time.Duration) {
	var all sync.WaitGroup
	for range max(j.Workers, 1) {
		all.Go(func() {
			buf := make([]byte, messageSize)
			for at := Now(); at < end; at = Now() {
				if err := connectAskClose(j, buf); err != nil {
					r.fail(err)
					continue
				}
				r.answered(Now() - at)
			}
		})
	}
	all.Wait()
}

func connectAskClose(j Job, buf []byte) error {
	fd, err := connect(unix.SOCK_STREAM, j.Targets[0], j.Timeout)
	if err != nil {
		return err
	}
	if err := ask(fd, buf); err != nil {
		_ = reset(fd)
		return err
	}
	return unix.Close(fd)
}

// dialEach connects to each target and closes the connection at once.
func dialEach(r *recorder, j Job) {
	for _, to := range j.Targets {
		at := Now()
		fd, err := connect(unix.SOCK_STREAM, to, j.Timeout)
		took := Now() - at
		if err != nil {
			r.fail(err)
			continue
		}
		r.answered(took)
		_ = reset(fd)
	}
}

// udpFlood sends until end.
func udpFlood(r *recorder, j Job, end time.Duration) error {
	fd, err := connect(unix.SOCK_DGRAM, j.Targets[0], j.Timeout)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, messageSize)
	const batch = 64 // datagrams between looks at the clock
	for Now() < end {
		for range batch {
			if err := writeAll(fd, buf); err != nil {
				return err
			}
		}
		r.requests += batch
	}
	return nil
}
