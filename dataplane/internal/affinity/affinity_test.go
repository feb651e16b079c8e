package affinity

import (
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestResume: a ServicePort keeps the number that it has in the kernel, whoever
// comes before it by name now.
func TestResume(t *testing.T) {
	named := func(name string) *dataplane.ServicePort {
		return &dataplane.ServicePort{ID: dataplane.PortID{Service: name}, Affinity: time.Hour}
	}
	a, b, c := named("a"), named("b"), named("c")
	of := NewIDs().Of(a)
	kernel := map[*dataplane.ServicePort]uint32{b: of, c: of} // b was there first; c's is somebody's mischief
	i := Resume(dataplane.MakePorts(a, b, c), func(p *dataplane.ServicePort) uint32 { return kernel[p] })
	if first, second, third := i.Of(a), i.Of(b), i.Of(c); second != of || first == of || third == of || first == third {
		t.Errorf("the numbers are %d, %d and %d; want b to keep %d", first, second, third, of)
	}
}

// TestIDs: no two ServicePorts have one number, whatever their names give, and
// one that goes frees its own alone.
func TestIDs(t *testing.T) {
	named := func(name string) *dataplane.ServicePort {
		return &dataplane.ServicePort{ID: dataplane.PortID{Service: name}, Affinity: time.Hour}
	}
	a, b := named("a"), named("b")
	i := NewIDs()
	first := i.Of(a)
	if first == 0 || i.Of(a) != first || NewIDs().Of(a) != first {
		t.Errorf("a's number is %d, then %d, and %d after a restart", first, i.Of(a), NewIDs().Of(a))
	}
	i = NewIDs()
	i.taken[first] = true // by somebody whose name gives the same
	second := i.Of(a)
	if second != first+1 {
		t.Errorf("where its number is taken, a has %d; want %d", second, first+1)
	}
	i.Forget(b, nil)
	i.Forget(a, a)
	if !i.taken[first] || !i.taken[second] {
		t.Error("a number that is in use was given up")
	}
	if i.Forget(a, nil); !i.taken[first] || i.taken[second] {
		t.Error("a's number is not given up, or another one")
	}
	if none := (&dataplane.ServicePort{}); i.Of(none) != 0 {
		t.Error("a ServicePort without affinity has a number")
	}
}
