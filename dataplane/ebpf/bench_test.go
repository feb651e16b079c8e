package ebpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// manyPorts are Services of one TCP port with a ClusterIP and so many endpoints.
func manyPorts(services, endpoints int) []*dataplane.ServicePort {
	ports := make([]*dataplane.ServicePort, services)
	for i := range ports {
		ports[i] = onePort(i, endpoints, 0)
	}
	return ports
}

// onePort is Service i; version moves its last endpoint.
func onePort(i, endpoints, version int) *dataplane.ServicePort {
	pool := &dataplane.Pool{}
	for e := range endpoints {
		n := i*endpoints + e
		port := uint16(8080)
		if e == endpoints-1 {
			port += uint16(version)
		}
		addr := netip.AddrFrom4([4]byte{10, byte(64 + n>>16), byte(n >> 8), byte(n)})
		pool.Endpoints = append(pool.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(addr, port)})
	}
	return &dataplane.ServicePort{
		ID: dataplane.PortID{Namespace: "bench", Service: fmt.Sprintf("web-%05d", i), Port: "http", Protocol: dataplane.TCP, Family: dataplane.IPv4},
		Frontends: []dataplane.Frontend{{
			Kind: dataplane.ClusterIP, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 32 + byte(i>>16), byte(i >> 8), byte(i)}), 80),
			Pool: pool, SNAT: dataplane.SNATNonPods,
		}},
	}
}

// BenchmarkFromEmpty is a first Sync: from a Snapshot to a kernel that held
// nothing, programs attached.
func BenchmarkFromEmpty(b *testing.B) {
	for _, size := range []struct{ services, endpoints int }{{10000, 10}, {65536, 4}} {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			want := snapshot(manyPorts(size.services, size.endpoints)...)
			for b.Loop() {
				b.StopTimer()
				o := testOptions(b)
				o.MaxFrontends, o.MaxEndpoints = 131072, 524288
				kernel := openBackend(b, o)
				b.StartTimer()
				mustSync(b, kernel, nil, want)
				b.StopTimer()
				_ = kernel.Close()
				if err := programs.Cleanup(o.withDefaults().PinDir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkOneEndpoint is a Sync in which one endpoint of one Service changed.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, services := range []int{10, 10000, 65536} {
		b.Run(fmt.Sprintf("%dx4", services), func(b *testing.B) {
			o := testOptions(b)
			o.MaxFrontends, o.MaxEndpoints = 131072, 524288
			kernel := openBackend(b, o)
			prev := snapshot(manyPorts(services, 4)...)
			mustSync(b, kernel, nil, prev)
			version := 0
			for b.Loop() {
				version++
				want := *prev
				want.Ports = prev.Ports.With([]*dataplane.ServicePort{onePort(services/2, 4, version%1000)}, nil)
				mustSync(b, kernel, prev, &want)
				prev = &want
			}
		})
	}
}

// BenchmarkAudit is a Sync that reads back a kernel which is as it is wanted.
func BenchmarkAudit(b *testing.B) {
	o := testOptions(b)
	kernel := openBackend(b, o)
	want := snapshot(manyPorts(10000, 10)...)
	mustSync(b, kernel, nil, want)
	for b.Loop() {
		mustSync(b, kernel, nil, want)
	}
}
