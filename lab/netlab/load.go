package netlab

import (
	"fmt"
	"sync"
	"time"
)

// Bounds of a load.
const (
	mostLoad    = 10 * time.Minute
	mostWorkers = 64
)

// load is traffic that goes on.
type load struct {
	start time.Time
	quit  chan struct{}
	done  sync.WaitGroup
	mu    sync.Mutex
	tally Tally
}

// startLoad starts traffic; ask does one Request.
func startLoad(args LoadArgs, ask func(Request) Answer) (*load, error) {
	if args.Workers < 1 || args.Workers > mostWorkers || args.Every <= 0 {
		return nil, fmt.Errorf("a load has 1 to %d workers and an interval above 0", mostWorkers)
	}
	l := &load{start: time.Now(), quit: make(chan struct{})}
	each := func() Answer {
		a := ask(args.Request)
		// A kernel waits one second for the answer to a SYN, on a slow machine too: there
		// it sends some again that were not lost.
		if a.Outcome == Answered && a.Resent && !slow() {
			a.Outcome, a.Detail = Failed, "answered, but TCP had to send its SYN again"
		}
		return a
	}
	if args.Held {
		h, err := holdOpen(args.Request)
		if err != nil {
			return nil, err
		}
		each = h.ask
		l.done.Go(func() {
			l.work(each, args.Every)
			_ = h.session.Close()
		})
		return l, nil
	}
	for range args.Workers {
		l.done.Go(func() { l.work(each, args.Every) })
	}
	return l, nil
}

func (l *load) work(each func() Answer, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	end := time.After(mostLoad)
	for {
		a := each()
		l.mu.Lock()
		l.tally.add(a, time.Since(l.start))
		l.mu.Unlock()
		select {
		case <-l.quit:
			return
		case <-end:
			return
		case <-tick.C:
		}
	}
}

func (l *load) sum() Tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tally
	t.ByServer = map[string]int{}
	for server, n := range l.tally.ByServer {
		t.ByServer[server] = n
	}
	return t
}

func (l *load) stop() Tally {
	close(l.quit)
	l.done.Wait()
	return l.sum()
}

// held is one session that is asked again and again.
type held struct {
	session session
	timeout time.Duration
	server  string // who answered last
}

func holdOpen(r Request) (*held, error) {
	deadline := time.Now().Add(r.Timeout)
	s, err := open(r, deadline)
	if err != nil {
		return nil, err
	}
	h := &held{session: s, timeout: r.Timeout}
	if h.server, _, err = s.ask(deadline); err != nil {
		_ = s.Close()
		return nil, err
	}
	return h, nil
}

func (h *held) ask() Answer {
	start := time.Now()
	server, source, err := h.session.ask(start.Add(h.timeout))
	a := Answer{Outcome: Answered, Server: server, Source: source, Local: h.session.local(), Took: time.Since(start)}
	switch {
	case err != nil:
		a.Outcome, a.Detail = outcomeOf(err), err.Error()
	case server != h.server:
		a.Outcome, a.Detail = Failed, fmt.Sprintf("answered by %s, before by %s", server, h.server)
		h.server = server
	}
	return a
}
