package dataplane

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func numbered(i int) *ServicePort { return service(fmt.Sprintf("s%06d", i)) }

// TestPortsAgreesWithAMap edits a list and a map alike, and holds the list
// against the map: what it has, its order, and the way from the list before.
func TestPortsAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list Ports
		model := map[PortID]*ServicePort{}
		for range rapid.IntRange(1, 20).Draw(t, "edits") {
			var put []*ServicePort
			var remove []PortID
			size := rapid.SampledFrom([]int{1, 3, 700}).Draw(t, "size")
			for range size {
				p := numbered(rapid.IntRange(0, 3000).Draw(t, "port"))
				if rapid.Bool().Draw(t, "put") {
					put = append(put, p)
				} else {
					remove = append(remove, p.ID)
				}
			}
			before, beforeModel := list, maps.Clone(model)
			list = list.With(put, remove)
			for _, id := range remove {
				delete(model, id)
			}
			for _, p := range put {
				model[p.ID] = p
			}
			check(t, list, model)
			check(t, before, beforeModel) // a list never changes

			patched := maps.Clone(beforeModel)
			var last PortID
			for old, cur := range Diff(before, list) {
				id := cmpOr(old, cur).ID
				if last.Compare(id) >= 0 {
					t.Fatalf("Diff is out of order: %s after %s", id, last)
				}
				last = id
				if old == cur || patched[id] != old {
					t.Fatalf("Diff gives (%p, %p) for %s, which was %p", old, cur, id, patched[id])
				}
				if cur == nil {
					delete(patched, id)
				} else {
					patched[id] = cur
				}
			}
			if !maps.Equal(patched, model) {
				t.Fatal("Diff does not lead from one list to the other")
			}
		}
	})
}

func cmpOr(a, b *ServicePort) *ServicePort {
	if a != nil {
		return a
	}
	return b
}

func check(t *rapid.T, list Ports, model map[PortID]*ServicePort) {
	t.Helper()
	all := slices.Collect(list.All())
	if !slices.IsSortedFunc(all, func(a, b *ServicePort) int { return a.ID.Compare(b.ID) }) {
		t.Fatal("not sorted")
	}
	if list.Len() != len(model) || len(all) != len(model) {
		t.Fatalf("Len %d, %d walked, want %d", list.Len(), len(all), len(model))
	}
	for id, p := range model {
		if list.Get(id) != p {
			t.Fatalf("Get(%s) is %p, want %p", id, list.Get(id), p)
		}
	}
	for i, c := range list.chunks {
		if len(c) == 0 || len(c) > 2*chunkSize {
			t.Fatalf("chunk %d has %d ports", i, len(c))
		}
		if i > 0 && len(c)+len(list.chunks[i-1]) <= chunkSize/4 {
			t.Logf("chunks %d and %d are small", i-1, i)
		}
	}
}

func TestMakePortsKeepsTheLaterOfTwo(t *testing.T) {
	first, second := service("a"), service("a")
	list := MakePorts(service("b"), first, second)
	if list.Len() != 2 || list.Get(first.ID) != second {
		t.Errorf("%d ports, a is %p, want 2 and %p", list.Len(), list.Get(first.ID), second)
	}
}

// BenchmarkPorts is the cost of one change to a list, and of finding it.
func BenchmarkPorts(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000, 50_000} {
		ports := make([]*ServicePort, n)
		for i := range ports {
			ports[i] = numbered(i)
		}
		list := MakePorts(ports...)
		changed := []*ServicePort{numbered(n / 2)}
		b.Run(fmt.Sprintf("With/%d", n), func(b *testing.B) {
			for b.Loop() {
				list.With(changed, nil)
			}
		})
		next := list.With(changed, nil)
		b.Run(fmt.Sprintf("Diff/%d", n), func(b *testing.B) {
			for b.Loop() {
				for range Diff(list, next) {
				}
			}
		})
	}
}
