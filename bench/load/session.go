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
	socket    func() (int, error) // makes the socket that is held; nil: none is
	fd        int                 // it; -1: there is none
	operation operation
	times     *hdrhistogram.Histogram // of all operations of all slices
	next      int                     // target
}

// openSession makes the socket that a session holds, if it holds one.
func openSession(j Job) (*session, error) {
	s := &session{job: j, fd: -1, times: NewHistogram()}
	if len(j.Targets) == 0 {
		return nil, fmt.Errorf("%s: no target", j.Kind)
	}
	connected := func(kind int) func() (int, error) {
		return func() (int, error) { return connect(kind, j.Targets[0], netlab.Patient(patience)) }
	}
	family, to := sockaddr(j.Targets[0])
	switch j.Kind {
	case Requests:
		s.socket, s.operation = connected(unix.SOCK_STREAM), timed(messageSize, s.ask)
	case UDPRequests:
		s.socket, s.operation = connected(unix.SOCK_DGRAM), timed(messageSize, s.ask)
	case Throughput:
		s.socket, s.operation = connected(unix.SOCK_STREAM), timed(bulkHeader+bulkSize, s.bulk)
	case UDPBatches:
		s.socket = func() (int, error) { return open(family, unix.SOCK_DGRAM, netlab.Patient(patience)) }
		s.operation = timed(messageSize, func(buf []byte) error { return s.batch(to, buf) })
	case Connections:
		s.operation = s.fresh(unix.SOCK_STREAM)
	case UDPFlows:
		s.operation = s.fresh(unix.SOCK_DGRAM)
	case Connects:
		s.operation = s.connect
	default:
		return nil, fmt.Errorf("there are no sessions %q", j.Kind)
	}
	return s, s.hold()
}

// timed is an operation with a buffer.
func timed(size int, do func(buf []byte) error) operation {
	buf := make([]byte, size)
	return func() (time.Duration, error) {
		begin := time.Now()
		err := do(buf)
		return time.Since(begin), err
	}
}

// hold makes the socket that is held, in place of the one before.
func (s *session) hold() error {
	if s.socket == nil {
		return nil
	}
	if err := s.close(); err != nil {
		return fmt.Errorf("%s: %w", s.job.Kind, err)
	}
	fd, err := s.socket()
	if err != nil {
		return fmt.Errorf("%s: %w", s.job.Kind, err)
	}
	s.fd = fd
	if err := fixBuffers(s.fd); err != nil {
		return fmt.Errorf("%s: %w", s.job.Kind, err)
	}
	return nil
}

func (s *session) close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return reset(fd)
}

// slice works for a while.
func (s *session) slice(d time.Duration) (Slice, error) {
	var sum Slice
	if s.job.Kind == Throughput {
		if err := s.renew(); err != nil {
			return sum, err
		}
	}
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

// renew gives a slice a stream of its own, past its slow start. How fast a stream is
// depends on how it began: two that lasted differed by 16 % for as long as they did.
func (s *session) renew() error {
	const slowStart = 2
	if err := s.hold(); err != nil {
		return err
	}
	for range slowStart {
		if _, err := s.operation(); err != nil {
			return fmt.Errorf("%s, to %s: %w", s.job.Kind, s.job.Targets[0], err)
		}
	}
	return nil
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
