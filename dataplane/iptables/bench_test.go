package iptables

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

const benchEndpoints = 10 // of each Service

// eachSize runs a benchmark for each variant and size, from empty tables.
func eachSize(b *testing.B, do func(*testing.B, *backend, *dataplane.Snapshot)) {
	kerneltest.NeedMain(b)
	for _, v := range []restore.Variant{restore.NFT, restore.Legacy} {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", v, n), func(b *testing.B) {
				back := opened(b, v, benchConfig())
				do(b, back, snapshot(services(n, benchEndpoints)...))
				benchClean(b)
			})
		}
	}
}

func benchConfig() dataplane.Config {
	return dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4}, MasqueradeBit: 14}
}

func benchClean(b *testing.B) {
	if err := Driver(Options{LockDir: lockDir()}).Cleanup(context.Background(), benchConfig()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCold is a first Sync into empty tables.
func BenchmarkCold(b *testing.B) {
	eachSize(b, func(b *testing.B, back *backend, want *dataplane.Snapshot) {
		for b.Loop() {
			if err := back.Sync(b.Context(), nil, want); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			benchClean(b)
			b.StartTimer()
		}
	})
}

// BenchmarkChange adds and removes one endpoint of one Service.
func BenchmarkChange(b *testing.B) {
	eachSize(b, func(b *testing.B, back *backend, want *dataplane.Snapshot) {
		if err := back.Sync(b.Context(), nil, want); err != nil {
			b.Fatal(err)
		}
		other := *want
		other.Ports = want.Ports.With([]*dataplane.ServicePort{withoutLast(want)}, nil)
		prev, next := want, &other
		back.families[0].counts.written.Store(0)
		for b.Loop() {
			if err := back.Sync(b.Context(), prev, next); err != nil {
				b.Fatal(err)
			}
			prev, next = next, prev
		}
		b.ReportMetric(float64(back.families[0].counts.written.Load())/float64(b.N), "rules/op")
	})
}

// withoutLast is the first ServicePort less one endpoint.
func withoutLast(s *dataplane.Snapshot) *dataplane.ServicePort {
	for p := range s.Ports.All() {
		less := *p
		f := p.Frontends[0]
		f.Pool = pool(f.Pool.Endpoints[:benchEndpoints-1]...)
		less.Frontends = []dataplane.Frontend{f}
		return &less
	}
	return nil
}

// BenchmarkAudit is a Sync that reads everything back and finds nothing to do.
func BenchmarkAudit(b *testing.B) {
	eachSize(b, func(b *testing.B, back *backend, want *dataplane.Snapshot) {
		if err := back.Sync(b.Context(), nil, want); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := back.Sync(b.Context(), nil, want); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkObserve reads the kernel's state as neutral frontends.
func BenchmarkObserve(b *testing.B) {
	eachSize(b, func(b *testing.B, back *backend, want *dataplane.Snapshot) {
		if err := back.Sync(b.Context(), nil, want); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := back.Observe(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFirstPacket sends the first packet of UDP flows from the node to
// ClusterIPs, each to another one: it is the packet that all rules are tried on.
func BenchmarkFirstPacket(b *testing.B) {
	for _, command := range []string{
		"ip link set lo up",
		"ip route replace local 10.128.0.0/9 dev lo", // all endpoints are here
		"ip route replace 10.96.0.0/12 dev lo",
		"sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1",
	} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			missing(b, fmt.Sprintf("%s: %v: %s", command, err, out))
		}
	}
	sink, err := net.ListenPacket("udp4", "0.0.0.0:8080")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = sink.Close() }()
	for _, v := range []restore.Variant{restore.NFT, restore.Legacy} {
		for _, n := range []int{10, 100, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", v, n), func(b *testing.B) {
				ports := services(n, benchEndpoints)
				for _, p := range ports {
					p.ID.Protocol = dataplane.UDP
				}
				if err := opened(b, v, benchConfig()).Sync(b.Context(), nil, snapshot(ports...)); err != nil {
					b.Fatal(err)
				}
				i, before := 0, cpuTime(b)
				for b.Loop() {
					i = (i + 7919) % n
					sendFirst(b, ports[i].Frontends[0].Addr)
				}
				b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
				benchClean(b)
			})
		}
	}
}

// sendFirst sends one packet from a port of its own.
func sendFirst(b *testing.B, to netip.AddrPort) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err == nil {
		err = syscall.Sendto(fd, []byte{1}, 0, &syscall.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		_ = syscall.Close(fd)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// cpuTime is the processor time of this process: unlike the clock, it says
// something on a machine that others use too.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
