package watcher

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// watched is a Watcher and what was taken from it: after each change that it was
// told of, as by a Syncer that always has time.
type watched struct {
	*Watcher
	log bytes.Buffer

	mu        sync.Mutex
	snapshots []*dataplane.Snapshot
}

func (w *watched) Apply(c facts.Change) {
	w.Watcher.Apply(c)
	w.take()
}

func (w *watched) SetAddresses(local []netip.Prefix) {
	w.Watcher.SetAddresses(local)
	w.take()
}

func (w *watched) take() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.Next(); s != nil {
		w.snapshots = append(w.snapshots, s)
	}
}

func options(log *slog.Logger) Options {
	return Options{
		Log: log, NodeName: "here", Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}, ExternalIPs: true,
		Addresses: func(ctx context.Context, _ func([]netip.Prefix)) error { <-ctx.Done(); return nil },
	}
}

func watch(t testing.TB, change func(*Options)) *watched {
	t.Helper()
	w := &watched{}
	o := options(slog.New(slog.NewTextHandler(&w.log, nil)))
	if change != nil {
		change(&o)
	}
	var err error
	w.Watcher, err = New(o, func() {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.waits.stop(); w.kept.stop() })
	return w
}

func (w *watched) last() *dataplane.Snapshot {
	w.take()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.snapshots) == 0 {
		return nil
	}
	return w.snapshots[len(w.snapshots)-1]
}

func (w *watched) published() int {
	w.take()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.snapshots)
}

// known is all that a source knows, in one step.
func known(services []*facts.Service, sets []*facts.Slice, node *facts.Node) facts.Change {
	c := facts.Change{
		Services: facts.Delta[facts.Service]{All: true, Put: services},
		Slices:   facts.Delta[facts.Slice]{All: true, Put: sets},
		Nodes:    facts.Delta[facts.Node]{All: true},
	}
	if node != nil {
		c.Nodes.Put = []*facts.Node{node}
	}
	return c
}

func put(s ...*facts.Service) facts.Change {
	return facts.Change{Services: facts.Delta[facts.Service]{Put: s}}
}

func putSlices(s ...*facts.Slice) facts.Change {
	return facts.Change{Slices: facts.Delta[facts.Slice]{Put: s}}
}

func putNode(n *facts.Node) facts.Change {
	return facts.Change{Nodes: facts.Delta[facts.Node]{Put: []*facts.Node{n}}}
}

func removed(name string) []facts.Name { return []facts.Name{{Namespace: "shop", Name: name}} }

func hereNode() *facts.Node {
	return &facts.Node{Name: facts.Name{Name: "here"}, Zone: "z1", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Eligible: true}
}

// svc is shop/name at 10.96.0.n:80.
func svc(name string, n int) *facts.Service {
	return &facts.Service{
		Name:       facts.Name{Namespace: "shop", Name: name},
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)})},
		Ports:      []facts.ServicePort{{Protocol: dataplane.TCP, Port: 80}},
	}
}

// set is an EndpointSlice of shop/service with ready endpoints 10.244.0.last.
func set(name, service string, last ...int) *facts.Slice {
	s := &facts.Slice{
		Name: facts.Name{Namespace: "shop", Name: name}, Service: service, Family: dataplane.IPv4,
		Ports: []facts.SlicePort{{Protocol: dataplane.TCP, Port: 8080}},
	}
	for _, n := range last {
		s.Endpoints = append(s.Endpoints, facts.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)}), Ready: true, Serving: true})
	}
	return s
}

// frontends lists a Snapshot's frontends as "web ClusterIP 10.96.0.1:80".
func frontends(s *dataplane.Snapshot) []string {
	out := []string{}
	for p := range s.Ports.All() {
		for _, f := range p.Frontends {
			out = append(out, fmt.Sprintf("%s %s %s", p.ID.Service, f.Kind, f.Addr))
		}
	}
	return out
}

// within waits until something is true.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
