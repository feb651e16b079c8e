package watcher

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// BenchmarkEndpointSliceEvent is one EndpointSlice event, from the object as
// client-go has decoded it to the next Snapshot. Making the object is not
// counted.
func BenchmarkEndpointSliceEvent(b *testing.B) {
	for _, n := range []int{100, 1000, 10000, 50000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			services, sets := cluster(n)
			w, err := New(options(slog.New(slog.DiscardHandler)), func() {})
			if err != nil {
				b.Fatal(err)
			}
			w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")})
			w.Apply(known(services, sets, hereNode()))
			w.Next()
			runtime.GC()
			b.ReportAllocs()
			var spent time.Duration
			for i := 0; b.Loop(); i++ {
				// An endpoint of some Service goes and comes, each time another Service.
				at := (i / 2 * 7919) % n
				object := apiSlice(sets[at], endpointsEach-1+i%2)
				begin := time.Now()
				f, _ := facts.FromSlice(object, "here")
				w.Apply(putSlices(f))
				taken := w.Next()
				spent += time.Since(begin)
				if taken == nil {
					b.Fatal("nothing is new")
				}
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "ns/op")
		})
	}
}

// apiSlice is the API object of a slice with its first endpoints.
func apiSlice(s *facts.Slice, first int) *discoveryv1.EndpointSlice {
	yes, no, port, name := true, false, int32(s.Ports[0].Port), s.Ports[0].Name
	o := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Name.Namespace, Name: s.Name.Name,
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, e := range s.Endpoints[:first] {
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{Addresses: []string{e.Addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}})
	}
	return o
}

// BenchmarkStart is everything known at once to the first Snapshot, and what is
// in memory then: facts and Snapshot.
func BenchmarkStart(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				before := heapInUse()
				services, sets := cluster(n)
				w, err := New(options(slog.New(slog.DiscardHandler)), func() {})
				if err != nil {
					b.Fatal(err)
				}
				w.SetAddresses(nil)
				b.StartTimer()
				w.Apply(known(services, sets, hereNode()))
				w.Next()
				b.StopTimer()
				b.ReportMetric(float64(heapInUse()-before)/1e6, "MB")
				runtime.KeepAlive(w)
				b.StartTimer()
			}
		})
	}
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
