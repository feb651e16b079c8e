package checks

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// checks lists all, in the order in which they build on each other: every check
// leaves the Deployment web with the number of Pods that the next one expects.
func (s *suite) checks() []check {
	all := []check{{"new Service answers at every place", s.programmed}}
	all = append(all, s.reach()...)
	all = append(all, s.everyType()...)
	all = append(all,
		check{"Service without Pods refuses", s.refused},
		check{"API server through its own Service", s.apiService},
		check{"scale 1 to 20 to 1 under load", s.scaling},
		check{"rolling update under load", s.rollingUpdate},
		check{"kube-apiserver stopped and started under load", s.apiServerRestart},
		check{"agents killed with SIGKILL and restarted under load", s.agentRestart},
	)
	all = append(all, s.asDaemonSet()...)
	return append(all, check{"node drained under load", s.drained})
}

// family is one half of a dual-stack address pair.
type family struct {
	name string
	pick func(v4, v6 netip.Addr) netip.Addr
}

func families() []family {
	return []family{
		{"IPv4", func(v4, _ netip.Addr) netip.Addr { return v4 }},
		{"IPv6", func(_, v6 netip.Addr) netip.Addr { return v6 }},
	}
}

// to is a stream of count requests to a Service's port.
func to(addr netip.Addr, port uint16, count int) load.Target {
	const rate = 100
	ap := netip.AddrPortFrom(addr, port)
	return load.Target{Name: ap.String(), Addr: ap, Rate: rate, Count: count}
}

// reach is who can reach what. Each stream has to meet every server: with 60
// requests for two servers it misses one by chance once in 10^17 runs.
func (s *suite) reach() []check {
	const count = 60
	var all []check
	for _, f := range families() {
		clusterIP := to(f.pick(s.web.v4, s.web.v6), port, count)
		var nodePorts []load.Target
		for _, n := range s.lab.Topology.Nodes {
			nodePorts = append(nodePorts, to(f.pick(n.V4, n.V6), nodePort, count))
		}
		for _, from := range []struct {
			name   string
			places []load.Place
		}{{"a pod", s.pods}, {"a node", s.nodes}, {"outside", []load.Place{s.ext}}} {
			all = append(all,
				s.reaches("ClusterIP from "+from.name+", "+f.name, from.places, clusterIP),
				s.reaches("NodePort of each node from "+from.name+", "+f.name, from.places, nodePorts...))
		}
		own := to(f.pick(s.solo.v4, s.solo.v6), port, count)
		all = append(all, check{"pod reaches itself through its Service, " + f.name, func(ctx context.Context) ([]load.Report, error) {
			return exchange(ctx, []stream{{s.self, own}})
		}})
		all = append(all, s.datagrams(f, count)...)
	}
	return all
}

// datagrams is reach for UDP.
func (s *suite) datagrams(f family, count int) []check {
	udp := func(addr netip.Addr, port uint16) load.Target {
		t := to(addr, port, count)
		t.UDP = true
		return t
	}
	last := s.lab.Topology.Nodes[len(s.lab.Topology.Nodes)-1]
	return []check{
		s.reaches("ClusterIP from a pod, UDP over "+f.name, s.pods, udp(f.pick(s.web.v4, s.web.v6), port)),
		s.reaches("NodePort from outside, UDP over "+f.name, []load.Place{s.ext}, udp(f.pick(last.V4, last.V6), nodeUDP)),
	}
}

// reaches wants every place to reach every target, and there every Pod of web.
func (s *suite) reaches(name string, from []load.Place, targets ...load.Target) check {
	return check{name, func(ctx context.Context) ([]load.Report, error) {
		pods, err := s.settled(ctx, 2)
		if err != nil {
			return nil, err
		}
		var streams []stream
		for _, place := range from {
			for _, t := range targets {
				streams = append(streams, stream{place, t})
			}
		}
		reports, err := exchange(ctx, streams)
		for _, r := range reports {
			if r.Failed == 0 {
				if e := answered(pods, r); e != nil {
					err = errors.Join(err, fmt.Errorf("%s: %w", r.Target.Name, e))
				}
			}
		}
		return reports, err
	}}
}

// through is requests that the agent of node i has to forward: from its pod and
// its programs to web's ClusterIP, and from outside to its NodePort.
func (s *suite) through(i, count int) []stream {
	var all []stream
	n := s.lab.Topology.Nodes[i]
	for _, f := range families() {
		clusterIP := to(f.pick(s.web.v4, s.web.v6), port, count)
		all = append(all, stream{s.pods[i], clusterIP}, stream{s.nodes[i], clusterIP},
			stream{s.ext, to(f.pick(n.V4, n.V6), nodePort, count)})
	}
	return all
}

// everywhere is through of every node.
func (s *suite) everywhere(count int) []stream {
	var all []stream
	for i := range s.nodes {
		all = append(all, s.through(i, count)...)
	}
	return all
}

// programmed waits until each place gets an answer. Its requests are not
// counted: how long an agent takes for a new Service is its own affair, within reason.
func (s *suite) programmed(ctx context.Context) ([]load.Report, error) {
	return nil, s.answering(ctx, "a new Service", s.everywhere(1))
}

// refused wants "connection refused", and no silence, from a Service without
// Pods. With all nodes on one kernel an ICMP error can arrive while connect still
// holds its socket; it then takes effect when the SYN is repeated after a second.
func (s *suite) refused(ctx context.Context) ([]load.Report, error) {
	// One each, because the kernel bounds the ICMP errors that it sends to a
	// peer: about one a second (net.ipv4.icmp_ratelimit, net.ipv6.icmp.ratelimit).
	const count = 1
	var streams []stream
	for _, f := range families() {
		clusterIP := to(f.pick(s.empty.v4, s.empty.v6), port, count)
		first := s.lab.Topology.Nodes[0]
		streams = append(streams, stream{s.pods[0], clusterIP}, stream{s.nodes[0], clusterIP},
			stream{s.ext, to(f.pick(first.V4, first.V6), nodeEmpty, count)})
	}
	reports, err := exchange(ctx, streams)
	const soon = 2 * time.Second
	for i := range reports {
		r := &reports[i]
		if r.Failed != r.Requests || !strings.Contains(r.FirstError, "refused") || r.Slowest > soon {
			err = errors.Join(err, fmt.Errorf("%s: %d of %d requests failed with %q, the slowest after %v; want all refused within %v",
				r.Target.Name, r.Failed, r.Requests, r.FirstError, r.Slowest, soon))
		}
		r.Failed = 0 // a refusal is what was wanted
	}
	return reports, err
}

// apiService reaches the API server at the ClusterIP of Service kubernetes.
func (s *suite) apiService(ctx context.Context) ([]load.Report, error) {
	const count = 10
	v4, _, err := s.lab.ClusterIPs(ctx, "default", "kubernetes")
	if err != nil {
		return nil, err
	}
	t := to(v4, 443, count)
	t.CA = s.lab.CA()
	var streams []stream
	for _, place := range append(append([]load.Place{}, s.pods...), s.nodes...) {
		streams = append(streams, stream{place, t})
	}
	return exchange(ctx, streams)
}
