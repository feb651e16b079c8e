package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// operation does something once and tells how long it took.
type operation func() (time.Duration, error)

// session is a Job in progress.
type session struct {
	job       Job
	fd        int // a socket that is held; -1: none
	operation operation
	times     *hdrhistogram.Histogram // of all operations of all slices
	next      int                     // target
}

// openSession makes the sockets that a session holds.
func openSession(j Job) (*session, error) {
	s := &session{job: j, fd: -1, times: NewHistogram()}
	if len(j.Targets) == 0 {
		return nil, fmt.Errorf("%s: no target", j.Kind)
	}
	hold := func(kind int) (int, error) { return connect(kind, j.Targets[0], netlab.Patient(patience)) }
	kind := unix.SOCK_STREAM
	var held func(buf []byte) error
	switch j.Kind {
	case Requests:
		held = s.ask
	case Throughput:
		held = s.bulk
	case UDPRequests:
		kind, held = unix.SOCK_DGRAM, s.ask
	case UDPBatches:
		family, to := sockaddr(j.Targets[0])
		hold = func(kind int) (int, error) { return open(family, kind, netlab.Patient(patience)) }
		kind, held = unix.SOCK_DGRAM, func(buf []byte) error { return s.batch(to, buf) }
	case Connections:
		s.operation = s.fresh(unix.SOCK_STREAM)
	case UDPFlows:
		s.operation = s.fresh(unix.SOCK_DGRAM)
	case Connects:
		s.operation = s.connect
	default:
		return nil, fmt.Errorf("there are no sessions %q", j.Kind)
	}
	if held == nil {
		return s, nil
	}
	var err error
	if s.fd, err = hold(kind); err != nil {
		return nil, fmt.Errorf("%s: %w", j.Kind, err)
	}
	if err := fixBuffers(s.fd); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", j.Kind, err), unix.Close(s.fd))
	}
	buf := make([]byte, max(messageSize, int(j.Kind.Operations())+bulkHeader))
	s.operation = func() (time.Duration, error) {
		begin := time.Now()
		err := held(buf)
		return time.Since(begin), err
	}
	return s, nil
}

func (s *session) close() error {
	if s.fd < 0 {
		return nil
	}
	return reset(s.fd)
}

// slice works for a while.
func (s *session) slice(d time.Duration) (Slice, error) {
	var sum Slice
	for end := time.Now().Add(d); time.Now().Before(end); sum.Done++ {
		took, err := s.operation()
		if err != nil {
			return sum, fmt.Errorf("%s, to %s: %w", s.job.Kind, s.job.Targets[s.next%len(s.job.Targets)], err)
		}
		sum.Took += took
		_ = s.times.RecordValue(min(int64(took), int64(time.Minute))) // within its bounds
	}
	return sum, nil
}

// ask sends one message over the held socket and reads its answer.
func (s *session) ask(buf []byte) error { return ask(s.fd, buf[:messageSize]) }

// batch sends all datagrams of a batch from a socket that is not connected, as
// servers do that ask others, and then reads all answers.
func (s *session) batch(to unix.Sockaddr, buf []byte) error {
	for range batchSize {
		err := unix.Sendto(s.fd, buf[:messageSize], 0, to)
		for errors.Is(err, unix.EINTR) {
			err = unix.Sendto(s.fd, buf[:messageSize], 0, to)
		}
		if err != nil {
			return fmt.Errorf("sending a datagram: %w", err)
		}
	}
	for range batchSize {
		if err := readAll(s.fd, buf[:messageSize]); err != nil {
			return err
		}
	}
	return nil
}

// bulkHeader is the bytes that say how many follow.
const bulkHeader = 8

// bulk sends bulkSize bytes and waits until the server has all of them.
func (s *session) bulk(buf []byte) error {
	binary.BigEndian.PutUint64(buf, bulkSize)
	if err := writeAll(s.fd, buf[:bulkHeader+bulkSize]); err != nil {
		return err
	}
	return readAll(s.fd, buf[:1])
}

// fresh makes a socket for one request.
func (s *session) fresh(kind int) operation {
	buf := make([]byte, messageSize)
	return func() (time.Duration, error) {
		begin := time.Now()
		fd, err := connect(kind, s.job.Targets[0], netlab.Patient(patience))
		if err != nil {
			return 0, err
		}
		if err := ask(fd, buf); err != nil {
			return 0, errors.Join(err, unix.Close(fd))
		}
		err = reset(fd)
		return time.Since(begin), err
	}
}

// connect connects to the next target and closes the connection at once; what is
// timed is the connect.
func (s *session) connect() (time.Duration, error) {
	to := s.job.Targets[s.next%len(s.job.Targets)]
	begin := time.Now()
	fd, err := connect(unix.SOCK_STREAM, to, netlab.Patient(patience))
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	s.next++
	return took, reset(fd)
}

// sessions are those of a process, by number.
type sessions struct {
	open map[int]*session
	last int
}

func (a *sessions) add(j Job) (int, error) {
	s, err := openSession(j)
	if err != nil {
		return 0, err
	}
	if a.open == nil {
		a.open = map[int]*session{}
	}
	a.last++
	a.open[a.last] = s
	return a.last, nil
}

func (a *sessions) slice(n int, d time.Duration) (Slice, error) {
	s := a.open[n]
	if s == nil {
		return Slice{}, fmt.Errorf("there is no session %d", n)
	}
	return s.slice(d)
}

// remove closes a session and tells the times of all its operations.
func (a *sessions) remove(n int) (*hdrhistogram.Snapshot, error) {
	s := a.open[n]
	if s == nil {
		return nil, fmt.Errorf("there is no session %d", n)
	}
	delete(a.open, n)
	return s.times.Export(), s.close()
}
