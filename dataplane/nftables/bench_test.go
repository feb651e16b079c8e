package nftables

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/backendtest"
)

// BenchmarkFromEmpty is a first Sync into a kernel without our tables.
func BenchmarkFromEmpty(b *testing.B) {
	for _, size := range []struct{ services, endpoints int }{{100, 10}, {10_000, 10}, {50_000, 10}} {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.endpoints), func(b *testing.B) {
			want := snapshot(services(size.services, size.endpoints)...)
			back := opened(b, dataplane.IPv4)
			for b.Loop() {
				backendtest.MustSync(b, back, nil, want)
				b.StopTimer()
				if err := cleanup(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkOneEndpoint removes an endpoint of one Service and adds it again.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{10, 10_000, 50_000} {
		b.Run(fmt.Sprintf("%dx10", n), func(b *testing.B) {
			back := opened(b, dataplane.IPv4)
			prev := snapshot(services(n, 10)...)
			next := withoutLast(prev)
			backendtest.MustSync(b, back, nil, prev)
			before := back.counts
			for b.Loop() {
				backendtest.MustSync(b, back, prev, next)
				prev, next = next, prev
			}
			b.ReportMetric(float64(back.counts.Elements-before.Elements)/float64(b.N), "elements/op")
			b.ReportMetric(float64(back.counts.Transactions-before.Transactions)/float64(b.N), "transactions/op")
		})
	}
}

// BenchmarkAudit reads back a kernel that is as it is wanted.
func BenchmarkAudit(b *testing.B) {
	back := opened(b, dataplane.IPv4)
	want := snapshot(services(10_000, 10)...)
	backendtest.MustSync(b, back, nil, want)
	for b.Loop() {
		if _, err := back.Observe(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAuditAmongChanges reads back a kernel while a change comes each 50 ms.
func BenchmarkAuditAmongChanges(b *testing.B) {
	back := opened(b, dataplane.IPv4)
	prev := snapshot(services(10_000, 10)...)
	next := withoutLast(prev)
	backendtest.MustSync(b, back, nil, prev)
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if err := back.Sync(b.Context(), prev, next); err != nil {
					b.Error(err)
					return
				}
				prev, next = next, prev
			}
		}
	})
	for b.Loop() {
		if _, err := back.Observe(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	changes.Wait()
}
