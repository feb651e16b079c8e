package inspect

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// kernel is a Backend that holds nothing.
type kernel struct{}

func (kernel) Sync(context.Context, *dataplane.Snapshot, *dataplane.Snapshot) error { return nil }
func (kernel) Observe(context.Context) (*dataplane.Observation, error) {
	return &dataplane.Observation{}, nil
}
func (kernel) Close() error { return nil }

// newServer is an agent that knows nothing yet.
func newServer(t *testing.T, socket string) *Server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	syncer := dataplane.NewSyncer(kernel{}, dataplane.SyncerConfig{Log: log})
	go syncer.Run(t.Context())
	w, err := watcher.New(watcher.Options{Log: log, NodeName: "here", Families: []dataplane.Family{dataplane.IPv4}}, syncer.Notify)
	if err != nil {
		t.Fatal(err)
	}
	return &Server{Socket: socket, HardFail: true, Log: log, Inspector: Inspector{
		NodeName: "here", Watcher: w, Syncer: syncer, Health: func() Health { return Health{Healthy: true} },
	}}
}

// serving runs a server until the test ends and waits until it answers.
func serving(t *testing.T, s *Server) Client {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c := Client{Socket: s.Socket}
	for range 100 {
		if _, _, err := c.Status(t.Context()); err == nil {
			return c
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the server does not answer")
	return c
}

func TestSocketIsForOneAgentAndForRoot(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "agent.sock")
	serving(t, newServer(t, socket))
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s is %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	err := newServer(t, socket).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another agent serves socket "+socket+": stop it, or give this one another --socket") {
		t.Errorf("a second agent: %v", err)
	}
}

func TestSocketOfAKilledAgentIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as SIGKILL leaves it
	_ = l.Close()
	if _, _, err := (Client{Socket: socket}).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no agent answers on socket "+socket) {
		t.Errorf("before: %v", err)
	}
	serving(t, newServer(t, socket))
}

// TestQuestionsWithoutAnAnswer holds what is said when there is nothing to tell.
func TestQuestionsWithoutAnAnswer(t *testing.T) {
	c := serving(t, newServer(t, filepath.Join(t.TempDir(), "agent.sock")))
	nobody := Client{Socket: "/nowhere/agent.sock"}
	for _, q := range []struct {
		name string
		ask  func(context.Context) error
		want string
	}{
		{"no agent", func(ctx context.Context) error { _, _, err := nobody.Status(ctx); return err },
			"no agent answers on socket /nowhere/agent.sock: start `switchyard run` on this node, or give the --socket that it was started with"},
		{"a Service before anything is known", func(ctx context.Context) error { _, _, err := c.Services(ctx, "shop", "web"); return err },
			"nothing is known yet: waiting for Services"},
		{"all Services before anything is known", func(ctx context.Context) error { _, _, err := c.Services(ctx, "", ""); return err },
			"nothing is known yet: waiting for Services"},
		{"verify before anything is known", func(ctx context.Context) error { _, _, err := c.Verify(ctx, true); return err },
			"reading the kernel back: nothing is wanted yet: Services are not known"},
		{"explain before anything is known", func(ctx context.Context) error {
			_, _, err := c.Explain(ctx, "10.0.0.1:80", "tcp", "", true)
			return err
		},
			"nothing is known yet: waiting for Services"},
		{"a name in place of an address", func(ctx context.Context) error {
			_, _, err := c.Explain(ctx, "web:80", "TCP", "", true)
			return err
		},
			`"web:80" is no address and port, as in 10.96.0.1:443 or [fd00::1]:443`},
		{"no port", func(ctx context.Context) error {
			_, _, err := nobody.Explain(ctx, "10.0.0.1", "TCP", "", true)
			return err
		},
			`"10.0.0.1" is no address and port`},
		{"an unknown protocol", func(ctx context.Context) error {
			_, _, err := nobody.Explain(ctx, "10.0.0.1:80", "ICMP", "", true)
			return err
		},
			`protocol "ICMP"; it can be TCP, UDP or SCTP`},
		{"a client that is none", func(ctx context.Context) error {
			_, _, err := nobody.Explain(ctx, "10.0.0.1:80", "TCP", "me", true)
			return err
		},
			`--from is "me"; it must be an IP address`},
		{"a client of another family", func(ctx context.Context) error {
			_, _, err := nobody.Explain(ctx, "10.0.0.1:80", "TCP", "fd00::1", true)
			return err
		},
			"--from is fd00::1, which is not of the family of 10.0.0.1"},
	} {
		t.Run(q.name, func(t *testing.T) {
			if err := q.ask(t.Context()); err == nil || !strings.Contains(err.Error(), q.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, q.want)
			}
		})
	}
}

// TestWhatIsCountedIsWanted: a Snapshot that the Syncer has yet to learn of is
// not said to be in force.
func TestWhatIsCountedIsWanted(t *testing.T) {
	s := newServer(t, "")
	w := s.Watcher
	w.SetAddresses(nil)
	w.Apply(facts.Change{Services: facts.Delta[facts.Service]{All: true}, Slices: facts.Delta[facts.Slice]{All: true},
		Nodes: facts.Delta[facts.Node]{Put: []*facts.Node{{Name: facts.Name{Name: "here"}, Final: true}}}})
	if w.Next() == nil {
		t.Fatal("no Snapshot")
	}
	if got := s.Status().Sync; got.Wanted != 1 || got.InForce != 0 {
		t.Errorf("%+v", got)
	}
}
