package watcher

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

const endpointsEach = 10

// cluster is n Services of ten endpoints.
func cluster(n int) ([]*facts.Service, []*facts.Slice) {
	services, sets := make([]*facts.Service, n), make([]*facts.Slice, n)
	for i := range n {
		name := fmt.Sprintf("service-%05d", i)
		services[i] = svc(name, i)
		sets[i] = tenEndpoints(name, i)
	}
	return services, sets
}

func tenEndpoints(service string, n int) *facts.Slice {
	last := make([]int, endpointsEach)
	for i := range last {
		last[i] = (n*endpointsEach + i) % 65536
	}
	return set(service+"-1", service, last...)
}

// BenchmarkEndpointSliceEvent is one EndpointSlice event to a published Snapshot.
func BenchmarkEndpointSliceEvent(b *testing.B) {
	for _, n := range []int{100, 1000, 10000, 50000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			services, sets := cluster(n)
			var published *dataplane.Snapshot
			w, err := New(options(slog.New(slog.DiscardHandler)), func(s *dataplane.Snapshot) { published = s })
			if err != nil {
				b.Fatal(err)
			}
			w.SetAddresses([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
			w.Apply(known(services, sets, hereNode()))
			// An endpoint of some Service goes and comes, each time another Service.
			less := make([]*facts.Slice, n)
			for i, s := range sets {
				l := *s
				l.Endpoints = s.Endpoints[:endpointsEach-1]
				less[i] = &l
			}
			runtime.GC()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				at := (i / 2 * 7919) % n
				before := published
				if i%2 == 0 {
					w.Apply(putSlices(less[at]))
				} else {
					w.Apply(putSlices(sets[at]))
				}
				if published == before {
					b.Fatal("nothing was published")
				}
			}
		})
	}
}

// BenchmarkStart is everything known at once to the first Snapshot, and what is
// in memory then: facts and Snapshot.
func BenchmarkStart(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				before := heap()
				services, sets := cluster(n)
				w, err := New(options(slog.New(slog.DiscardHandler)), func(*dataplane.Snapshot) {})
				if err != nil {
					b.Fatal(err)
				}
				w.SetAddresses(nil)
				b.StartTimer()
				w.Apply(known(services, sets, hereNode()))
				b.StopTimer()
				b.ReportMetric(float64(heap()-before)/1e6, "MB")
				runtime.KeepAlive(w)
				b.StartTimer()
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
