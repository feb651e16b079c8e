package watcher

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// huge is a Service of some ports, with 5,000 endpoints in 50 slices.
func huge(ports int) (*facts.Service, []*facts.Slice) {
	s := svc("huge", 1)
	s.Ports = nil
	for p := range ports {
		s.Ports = append(s.Ports, facts.ServicePort{Name: fmt.Sprint("p", p), Protocol: dataplane.TCP, Port: uint16(80 + p)})
	}
	sets := make([]*facts.Slice, 50)
	for k := range sets {
		sets[k] = hugeSlice(k, ports, -1)
	}
	return s, sets
}

// hugeSlice is one of its slices, with one endpoint that is not ready.
func hugeSlice(k, ports, unready int) *facts.Slice {
	f := &facts.Slice{Name: facts.Name{Namespace: "shop", Name: fmt.Sprintf("huge-%02d", k)}, Service: "huge", Family: dataplane.IPv4}
	for p := range ports {
		f.Ports = append(f.Ports, facts.SlicePort{Name: fmt.Sprint("p", p), Protocol: dataplane.TCP, Port: uint16(8080 + p)})
	}
	for i := range 100 {
		f.Endpoints = append(f.Endpoints, facts.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(k), byte(i)}),
			Ready: i != unready, Serving: i != unready, Place: facts.MakePlace(fmt.Sprint("node-", i), "z")})
	}
	return f
}

// TestChangesUntilASnapshotIsTakenAreOne: whoever is not ready for the next
// Snapshot costs nothing, whatever happens meanwhile.
func TestChangesUntilASnapshotIsTakenAreOne(t *testing.T) {
	told := 0
	o := options(slog.New(slog.DiscardHandler))
	var order []string
	o.Programming = func(revision uint64, triggers []time.Time) {
		order = append(order, fmt.Sprintf("told of %d with %d changes", revision, len(triggers)))
	}
	w, err := New(o, func() { told++ })
	if err != nil {
		t.Fatal(err)
	}
	take := func() {
		if s := w.Next(); s != nil {
			order = append(order, fmt.Sprint("took ", s.Revision))
		} else {
			order = append(order, "nothing new")
		}
	}
	service, sets := huge(5)
	take()
	w.SetAddresses(nil)
	w.Apply(known([]*facts.Service{service}, sets, hereNode()))
	take()
	take()
	for i := range 1000 {
		f := hugeSlice(i%50, 5, i%100)
		f.Trigger = time.Unix(int64(i), 0)
		w.Apply(putSlices(f))
	}
	if w.Around().Snapshot.Revision != 1 {
		t.Error("a Snapshot was built that nobody took")
	}
	take()
	w.Apply(putSlices(set("none-1", "none", 1))) // of no Service
	take()
	want := []string{"nothing new", "told of 1 with 0 changes", "took 1", "nothing new", "told of 2 with 1000 changes", "took 2", "nothing new"}
	if fmt.Sprint(order) != fmt.Sprint(want) {
		t.Errorf("got %q\nwant %q", order, want)
	}
	if told < 1000 {
		t.Errorf("told %d times that there is something to take", told)
	}
}

// TestAHugeServiceUnderASyncer: 1,000 slice events in a row while Syncs take
// their time are built as often as the kernel is programmed, at most 100 times.
func TestAHugeServiceUnderASyncer(t *testing.T) {
	var syncer *dataplane.Syncer
	w, err := New(options(slog.New(slog.DiscardHandler)), func() { syncer.Notify() })
	if err != nil {
		t.Fatal(err)
	}
	syncer = dataplane.NewSyncer(slowKernel{}, dataplane.SyncerConfig{Log: slog.New(slog.DiscardHandler), AuditInterval: -1, Next: w.Next})
	go syncer.Run(t.Context())
	service, sets := huge(5)
	w.SetAddresses(nil)
	w.Apply(known([]*facts.Service{service}, sets, hereNode()))
	for i := range 1000 {
		w.Apply(putSlices(hugeSlice(i%50, 5, i%99)))
	}
	const last = 99
	w.Apply(putSlices(hugeSlice(7, 5, last)))
	within(t, "all is programmed", func() bool {
		at := syncer.Status()
		return at.Behind.IsZero() && at.InForce > 0 && w.Around().Snapshot.Revision == at.InForce
	})
	if n := syncer.Status().InForce; n > 100 {
		t.Errorf("%d builds", n)
	}
	gone := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 7, last}), 8080)
	for p := range w.Around().Snapshot.Ports.All() {
		for _, e := range p.Frontends[0].Pool.Endpoints {
			if e.Addr == gone {
				t.Errorf("%s is still there", gone)
			}
		}
	}
}

// slowKernel takes 20 ms for a Sync.
type slowKernel struct{ dataplane.Backend }

func (slowKernel) Sync(context.Context, *dataplane.Snapshot, *dataplane.Snapshot) error {
	time.Sleep(20 * time.Millisecond)
	return nil
}

// BenchmarkHugeService is a slice event of a Service with 5,000 endpoints, each
// of which is taken at once.
func BenchmarkHugeService(b *testing.B) {
	for _, ports := range []int{1, 5} {
		b.Run(fmt.Sprintf("ports=%d", ports), func(b *testing.B) {
			w, err := New(options(slog.New(slog.DiscardHandler)), func() {})
			if err != nil {
				b.Fatal(err)
			}
			service, sets := huge(ports)
			w.SetAddresses(nil)
			w.Apply(known([]*facts.Service{service}, sets, hereNode()))
			w.Next()
			runtime.GC()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				w.Apply(putSlices(hugeSlice(i%50, ports, i%100)))
				if w.Next() == nil && i >= 100 {
					b.Fatal("nothing is new")
				}
			}
		})
	}
}
