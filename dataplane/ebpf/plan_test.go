package ebpf

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// TestMakeRecord says what an update leaves as it is.
func TestMakeRecord(t *testing.T) {
	a, b := poolOf("10.40.1.1:80", "10.40.1.2:80"), poolOf("10.40.1.1:80")
	type f = dataplane.Frontend
	cluster := f{Kind: dataplane.ClusterIP, Addr: netip.MustParseAddrPort("10.96.0.1:80"), Pool: a}
	external := f{Kind: dataplane.LoadBalancer, Addr: netip.MustParseAddrPort("10.97.0.1:80"), Pool: a}
	local := external
	local.Pool, local.Inside = b, a
	moved := cluster
	moved.Pool = b

	for _, c := range []struct {
		name       string
		old, want  []dataplane.Frontend
		generation bool // a new one
		frontends  int  // written
		twoMasters bool // the old pools stay for a moment
	}{
		{"nothing changes", []f{cluster, external}, []f{cluster, external}, false, 0, false},
		{"a new port", nil, []f{cluster, local}, true, 2, false},
		{"the pool of all frontends changes: one master entry", []f{cluster}, []f{moved}, true, 0, false},
		{"a frontend comes with a pool that is there", []f{cluster}, []f{cluster, external}, false, 1, false},
		{"a frontend comes with a pool of its own", []f{cluster}, []f{cluster, local}, true, 1, false},
		{"a frontend goes, and its pool too", []f{cluster, local}, []f{cluster}, true, 0, true},
		{"frontends that shared a pool part", []f{cluster, external}, []f{cluster, local}, true, 2, true},
		{"frontends that had two pools come to share one", []f{cluster, local}, []f{cluster, external}, true, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var old *plan
			generation := uint32(0)
			if c.old != nil {
				var err error
				if old, err = planFor(nil, portOf("web", dataplane.TCP, c.old...), 7); err != nil {
					t.Fatal(err)
				}
				generation = old.master.Generation
			}
			next, err := planFor(old, portOf("web", dataplane.TCP, c.want...), 7)
			if err != nil {
				t.Fatal(err)
			}
			var w writes
			w.change(old, next)
			if got := next.master.Generation != generation; got != c.generation {
				t.Errorf("new generation: %t, want %t", got, c.generation)
			}
			if len(w.frontends) != c.frontends {
				t.Errorf("%d frontends are written, want %d", len(w.frontends), c.frontends)
			}
			if got := len(w.settled) > 0; got != c.twoMasters {
				t.Errorf("a second master entry: %t, want %t", got, c.twoMasters)
			}
			checkPools(t, next, c.want)
			if old != nil {
				checkOldIndexes(t, old, &w)
			}
		})
	}
}

// checkPools sees that each frontend's indexes lead to its pools.
func checkPools(t *testing.T, r *plan, frontends []dataplane.Frontend) {
	t.Helper()
	for i, f := range frontends {
		v := r.frontends[i].value
		if !samePool(r.pools[v.Pool], f.Pool) || !samePool(r.pools[v.Inside], insideOf(f)) {
			t.Errorf("%s has the indexes %d and %d, which lead elsewhere", f.Addr, v.Pool, v.Inside)
		}
		if n := r.master.Pools[v.Pool].Count; int(n) != len(f.Pool.Endpoints) {
			t.Errorf("%s: the master entry has %d endpoints, want %d", f.Addr, n, len(f.Pool.Endpoints))
		}
	}
}

// checkOldIndexes sees that a frontend which has not turned yet finds endpoints
// in the first master entry that is written.
func checkOldIndexes(t *testing.T, old *plan, w *writes) {
	t.Helper()
	if len(w.masters) == 0 {
		return
	}
	for _, e := range old.frontends {
		for _, i := range []uint8{e.value.Pool, e.value.Inside} {
			if old.master.Pools[i].Count > 0 && w.masters[0].Pools[i].Count == 0 {
				t.Errorf("pool %d is empty for a moment", i)
			}
		}
	}
}

func TestTooManyPools(t *testing.T) {
	var frontends []dataplane.Frontend
	for i := range programs.MaxPools + 1 {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, 0, byte(i)}), 80)
		frontends = append(frontends, dataplane.Frontend{Kind: dataplane.LoadBalancer, Addr: addr, Pool: poolOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 40, 0, byte(i)}), 80).String())})
	}
	if _, err := planFor(nil, portOf("web", dataplane.TCP, frontends...), 1); err == nil {
		t.Error("more pools than a master entry has room for were accepted")
	}
	if _, err := planFor(nil, portOf("web", dataplane.TCP, frontends[:programs.MaxPools]...), 1); err != nil {
		t.Error(err)
	}
}

func TestAffinityAloneWritesJustTheMasterEntry(t *testing.T) {
	port := portOf("web", dataplane.TCP, frontendAt(dataplane.ClusterIP, "10.96.0.1:80", poolOf("10.40.1.1:80")))
	old, err := planFor(nil, port, 1)
	if err != nil {
		t.Fatal(err)
	}
	sticky := *port
	sticky.Affinity = time.Hour
	next, err := planFor(old, &sticky, 1)
	if err != nil {
		t.Fatal(err)
	}
	var w writes
	w.change(old, next)
	if len(w.masters) != 1 || w.masters[0].AffinityS != 3600 || len(w.slots)+len(w.frontends) > 0 {
		t.Errorf("writes %+v", w)
	}
}

func TestAddressesGoThereAndBack(t *testing.T) {
	for _, a := range []string{"10.96.0.1:80", "[fd96::1]:65535", "0.0.0.0:30000", "[::]:30000", "255.255.255.255:1"} {
		want := netip.MustParseAddrPort(a)
		k := programs.ToFrontendKey(dataplane.Frontend{Addr: want}, dataplane.TCP)
		if got := programs.FromAddrPort(k.Addr, k.Port); got != want {
			t.Errorf("%s became %s", want, got)
		}
	}
}

// The counts of what is left to packets follow each change.
func TestAsideIsCountedByReason(t *testing.T) {
	b := &sockets{}
	one, two := dataplane.PortID{Service: "one"}, dataplane.PortID{Service: "two"}
	for _, step := range []struct {
		id   dataplane.PortID
		why  string
		want map[string]int
	}{
		{one, "", map[string]int{}},
		{one, leftBound, map[string]int{leftBound: 1}},
		{one, leftBound, map[string]int{leftBound: 1}},
		{two, leftBound, map[string]int{leftBound: 2}},
		{one, leftNoRoom, map[string]int{leftBound: 1, leftNoRoom: 1}},
		{two, "", map[string]int{leftNoRoom: 1}},
	} {
		b.held.left.set(step.id, step.why)
		if b.tell(); !maps.Equal(b.told.Load().left, step.want) {
			t.Errorf("%s %q: counted %v, want %v", step.id.Service, step.why, b.told.Load().left, step.want)
		}
	}
}
