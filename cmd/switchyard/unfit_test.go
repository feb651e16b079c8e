package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/agent"
	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

// machine is a node with backends that are only words, each of which fails its
// Syncs with an error of its own.
type machine struct {
	mu      sync.Mutex
	fails   map[string]error
	synced  []string // the backends that served, one entry for each Sync
	cleaned []string
}

type pretended struct {
	*machine
	name string
}

func (p pretended) Sync(context.Context, *dataplane.Snapshot, *dataplane.Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fails[p.name]; err != nil {
		return err
	}
	p.synced = append(p.synced, p.name)
	return nil
}

func (p pretended) Observe(context.Context) (*dataplane.Observation, error) {
	return &dataplane.Observation{Whole: true}, nil
}
func (p pretended) Close() error { return nil }

func (m *machine) driver(name string) dataplane.Driver {
	return dataplane.Driver{
		Name: name,
		Open: func(context.Context, dataplane.Config) (dataplane.Backend, error) {
			return pretended{m, name}, nil
		},
		Cleanup: func(context.Context, dataplane.Config) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.cleaned = append(m.cleaned, name)
			return nil
		},
	}
}

func (m *machine) has(list *[]string, name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(*list, name)
}

// runOn starts an agent on a machine with three backends until the test ends.
func (m *machine) runOn(t *testing.T, backend string) (socket string, log *lockedBuffer) {
	t.Helper()
	return m.runDrivers(t, backend, []dataplane.Family{dataplane.IPv4}, func() []dataplane.Driver {
		return []dataplane.Driver{m.driver("first"), m.driver("second"), m.driver("third")}
	})
}

// runDrivers starts an agent that has these backends until the test ends.
func (m *machine) runDrivers(t *testing.T, backend string, families []dataplane.Family, drivers func() []dataplane.Driver) (
	socket string, log *lockedBuffer,
) {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
	socket, log = filepath.Join(t.TempDir(), "agent.sock"), &lockedBuffer{}
	o := agent.NewOptions()
	o.Backends = []string{"auto", "first", "second", "third"}
	cmd := runCommand() // for its flags alone
	cmd.ResetFlags()
	o.AddFlags(cmd.Flags())
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	if err := cmd.ParseFlags([]string{"--backend=" + backend, "--manifests=" + dir, "--hostname-override=node-1", "--socket=" + socket, "--lock-dir=" + lockDir(),
		"--healthz-bind-address=", "--metrics-bind-address=" + addr, "--bind-address-hard-fail", "--detect-local-mode=NodeCIDR", "--verify-interval=1h"}); err != nil {
		t.Fatal(err)
	}
	c, err := agent.Load(o)
	if err != nil {
		t.Fatal(err)
	}
	list := func(o catalog.Options) []dataplane.Driver {
		return o.Fit(drivers())
	}
	a := agent.New(agent.Parts{
		Flags: o, Config: c, Backends: agent.Backends{Drivers: list, Layers: list}, Families: families, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return socket, log
}

// TestFirstSyncDecides has backends that can be opened and cannot program this
// machine. If another one was asked for too, it is taken.
func TestFirstSyncDecides(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	transient := errors.New("the kernel is busy")
	refused := &dataplane.PartialError{Failed: []dataplane.PortError{{Err: unix.EOPNOTSUPP}}}
	for _, c := range []struct {
		name    string
		backend string
		fails   map[string]error
		serves  string
		passed  []string
	}{
		{"nothing fails", "auto", nil, "first", nil},
		{"a missing feature", "auto", map[string]error{"first": dataplane.ErrUnsupported}, "second", []string{"first"}},
		{"no permission", "auto", map[string]error{"first": unix.EPERM}, "second", []string{"first"}},
		{"read-only settings", "auto", map[string]error{"first": fmt.Errorf("writing a setting: %w", unix.EROFS)}, "second", []string{"first"}},
		{"no such system call", "auto", map[string]error{"first": unix.ENOSYS}, "second", []string{"first"}},
		{"no such operation, twice", "auto", map[string]error{"first": unix.EOPNOTSUPP, "second": unix.EAFNOSUPPORT}, "third", []string{"first", "second"}},
		{"what may pass is tried again", "auto", map[string]error{"first": transient}, "", nil},
		{"a Service is refused", "auto", map[string]error{"first": refused}, "first", nil},
		{"no other was asked for", "first", map[string]error{"first": unix.EPERM}, "", nil},
		{"no other is left", "auto", map[string]error{"first": unix.EPERM, "second": unix.EPERM, "third": unix.EPERM}, "", []string{"first", "second"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &machine{fails: c.fails}
			socket, _ := m.runOn(t, c.backend)
			client := inspect.Client{Socket: socket}
			settled := func() bool {
				s, _, err := client.Status(t.Context())
				return err == nil && s.Sync.Wanted > 0 && len(s.Backend.PassedOver) == len(c.passed) &&
					(c.serves == "" || s.Health.Ready && s.Backend.Name == c.serves) && (c.serves != "" || s.Sync.Error != "")
			}
			eventually(t, "the backend that serves and those passed over", settled)
			s, _, err := client.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range s.Backend.PassedOver {
				if p.Name != c.passed[i] || !strings.Contains(p.Reason, "its first Sync failed") {
					t.Errorf("passed over %s: %s; want %s", p.Name, p.Reason, c.passed[i])
				}
			}
			if c.serves != "" {
				for _, name := range c.passed {
					eventually(t, "what "+name+" wrote is removed", func() bool { return m.has(&m.cleaned, name) })
				}
			}
			if m.has(&m.cleaned, s.Backend.Name) {
				t.Errorf("what %s serves was removed", s.Backend.Name)
			}
		})
	}
}

// TestABackendThatServedStays: what fails later is no first Sync, also where a
// Service has been refused all along.
func TestABackendThatServedStays(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	refused := dataplane.PortError{ID: dataplane.PortID{Namespace: "shop", Service: "web", Family: dataplane.IPv4}, Err: unix.ENOSPC}
	m := &machine{fails: map[string]error{"first": &dataplane.PartialError{Failed: []dataplane.PortError{refused}}}}
	socket, log := m.runOn(t, "auto")
	client := inspect.Client{Socket: socket}
	eventually(t, "ready", func() bool {
		s, _, err := client.Status(t.Context())
		return err == nil && s.Health.Ready
	})
	m.mu.Lock()
	m.fails["first"] = unix.EPERM
	m.mu.Unlock()
	eventually(t, "a Sync that fails", func() bool { return strings.Contains(log.String(), "programming the kernel failed") })
	time.Sleep(300 * time.Millisecond)
	if s, _, err := client.Status(t.Context()); err != nil || s.Backend.Name != "first" {
		t.Errorf("backend %s, %v; want the one that served", s.Backend.Name, err)
	}
}

// oneFamily is a backend that programs IPv4 alone.
type oneFamily struct{ pretended }

func (oneFamily) Families() []dataplane.Family { return []dataplane.Family{dataplane.IPv4} }

// TestAFamilyComesBack has a machine that cannot program IPv6 when the agent starts,
// and can a little later. The agent reports it meanwhile.
func TestAFamilyComesBack(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	m := &machine{}
	var mended atomic.Bool
	d := m.driver("first")
	d.Probe = nil
	d.Open = func(_ context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
		switch {
		case mended.Load() || !slices.Contains(cfg.Families, dataplane.IPv6):
			return pretended{m, "first"}, nil
		case cfg.SomeFamilies:
			return oneFamily{pretended{m, "first"}}, nil
		}
		return nil, errors.New("ip6tables is busy")
	}
	socket, _ := m.runDrivers(t, "auto", []dataplane.Family{dataplane.IPv4, dataplane.IPv6}, func() []dataplane.Driver { return []dataplane.Driver{d} })
	client := inspect.Client{Socket: socket}
	status := func(ok func(inspect.Status) bool) func() bool {
		return func() bool {
			s, _, err := client.Status(t.Context())
			return err == nil && s.Health.Ready && ok(s)
		}
	}
	eventually(t, "IPv4 alone, and why", status(func(s inspect.Status) bool {
		return slices.Equal(s.Node.Families, []string{"IPv4"}) && strings.Contains(s.Node.Lacking, "ip6tables is busy")
	}))
	mended.Store(true)
	eventually(t, "both families", status(func(s inspect.Status) bool { return len(s.Node.Families) == 2 && s.Node.Lacking == "" }))
}

// TestLayerAtFault names the layer that an error of a layered backend is of.
func TestLayerAtFault(t *testing.T) {
	c := catalog.Choice{Layers: []string{"on top", "packets"}}
	for _, e := range []struct {
		err  error
		want string
	}{
		{unix.EPERM, "packets"},
		{&dataplane.LayerError{Layer: "on top", Err: unix.EPERM}, "on top"},
		{fmt.Errorf("programming: %w", &dataplane.LayerError{Layer: "on top", Err: unix.EPERM}), "on top"},
	} {
		if got := c.LayerOf(e.err); got != e.want {
			t.Errorf("%v is of %s, want %s", e.err, got, e.want)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// TestAutoOnPoorMachines runs real agents where a backend lacks something, or
// settings cannot be written: auto serves by another one, or without it.
func TestAutoOnPoorMachines(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
	pins := fmt.Sprintf("--ebpf-pin-dir=/sys/fs/bpf/switchyard-test-%d", os.Getpid())
	plain := func() string { return t.TempDir() } // no cgroup v2, and no bpffs
	for _, c := range []struct {
		name, before string // a shell command in the agent's mount namespace
		flags        []string
		passed       string // a part of the reason; "": nothing is passed over
	}{
		{"settings are read-only", "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys", []string{"--ebpf-pin-dir=" + plain()}, "bpf file system"},
		{"the cgroup is not v2", "true", []string{pins, "--ebpf-cgroup-root=" + plain()}, "is no cgroup v2 directory and has none below it"},
		{"pins are not on bpffs", "true", []string{"--ebpf-pin-dir=" + plain()}, "bpf file system"},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "agent.sock")
			p := start(t, func(cmd *exec.Cmd) {
				exe, err := os.Executable()
				if err != nil {
					t.Fatal(err)
				}
				args := append([]string{"unshare", "--mount", "sh", "-c", c.before + ` && exec "$0" "$@"`, exe}, append(cmd.Args[1:], "--socket="+socket)...)
				if cmd.Path, err = exec.LookPath("unshare"); err != nil {
					t.Skip(err)
				}
				cmd.Args = args
			}, append([]string{"run", "--manifests=" + dir, "--hostname-override=node-1", "--cluster-cidr=10.244.0.0/16", "--healthz-bind-address=", "--metrics-bind-address="}, c.flags...)...)
			var s inspect.Status
			p.within(t, "ready", func() bool { s, _, _ = (inspect.Client{Socket: socket}).Status(t.Context()); return s.Health.Ready })
			if len(s.Backend.PassedOver) != 1 || !strings.Contains(s.Backend.PassedOver[0].Reason, c.passed) {
				t.Errorf("passed over %+v; want one, because of %q", s.Backend.PassedOver, c.passed)
			}
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			<-p.done
			p = start(t, nil, append([]string{"cleanup"}, c.flags...)...)
			if code, line := p.ended(t); code != 0 {
				t.Errorf("cleanup: %d, %s", code, line)
			}
		})
	}
}
