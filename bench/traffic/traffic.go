// Package traffic measures what requests cost on their way through each proxy.
package traffic

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Config says how much is measured.
type Config struct {
	Rounds   int           // of the two most telling paths
	Fewer    int           // rounds of the others; 0: they are left out
	Slice    time.Duration // how long a proxy's turn is
	Progress func(format string, args ...any)
}

// path is a way from a client to a server.
type path struct {
	name    string
	from    func(*proxy.Proxy) *load.Host
	service string
	node    bool // by NodePort, not ClusterIP
	version int
}

func fromPod(p *proxy.Proxy) *load.Host     { return p.Pod }
func fromNode(p *proxy.Proxy) *load.Host    { return p.OnNode }
func fromOutside(p *proxy.Proxy) *load.Host { return p.Outside }

// The Services, by where their one endpoint is.
const (
	remote    = "remote"
	local     = "local"
	localOnly = "local-only" // externalTrafficPolicy: Local
)

// paths are all ways; the first telling ones are measured most.
func paths() []path {
	return []path{
		{result.PodToClusterIP, fromPod, remote, false, 4},
		{result.OutsideToNodePort, fromOutside, remote, true, 4},
		{"pod to ClusterIP, endpoint on its node", fromPod, local, false, 4},
		{"node to ClusterIP, endpoint on another node", fromNode, remote, false, 4},
		{"outside to NodePort, endpoint on that node", fromOutside, local, true, 4},
		{"outside to NodePort, externalTrafficPolicy Local", fromOutside, localOnly, true, 4},
		{result.PodToClusterIP + ", IPv6", fromPod, remote, false, 6},
		{result.OutsideToNodePort + ", IPv6", fromOutside, remote, true, 6},
	}
}

// telling is how many paths answer most questions.
const telling = 2

// ways are the paths to measure.
func (c Config) ways() []path {
	if c.Fewer == 0 {
		return paths()[:telling]
	}
	return paths()
}

// rounds is how often a path is measured.
func (c Config) rounds(way path) int {
	for _, p := range paths()[:telling] {
		if p.name == way.name {
			return c.Rounds
		}
	}
	return c.Fewer
}

// The ports of each Service, by their index.
const (
	tcpPort = iota
	udpPort
	bulkPort
)

func ports() []control.Port {
	return []control.Port{
		{Protocol: corev1.ProtocolTCP, Port: 80, Target: load.EchoPort},
		{Protocol: corev1.ProtocolUDP, Port: 80, Target: load.EchoPort},
		{Protocol: corev1.ProtocolTCP, Port: 81, Target: load.BulkPort},
	}
}

// bench is a run.
type bench struct {
	Config
	proxies  []*proxy.Proxy
	services map[string]*control.Placed
	report   *result.Report
}

// Run measures all paths, all proxies side by side.
func Run(ctx context.Context, cfg Config, plane *control.Plane, proxies []*proxy.Proxy, report *result.Report) error {
	b := &bench{Config: cfg, proxies: proxies, report: report, services: map[string]*control.Placed{}}
	here, there := proxies[0].Endpoints() // the same in each lab
	for name, e := range map[string]control.Endpoint{remote: there, local: here, localOnly: here} {
		s := control.Service{Name: name, Ports: ports(), DualStack: true, NodePort: true, Local: name == localOnly, Endpoints: []control.Endpoint{e}}
		placed, err := plane.Create(ctx, s)
		if err != nil {
			return err
		}
		b.services[name] = placed
	}
	if err := b.warmUp(ctx); err != nil {
		return err
	}
	for _, way := range cfg.ways() {
		for _, m := range metrics() {
			cfg.Progress("%s: %s, %d rounds", way.name, m.Kind, cfg.rounds(way))
			if err := b.row(ctx, way, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// warmUp waits until every path works, and sees that requests straight to the pod
// pass by each proxy.
func (b *bench) warmUp(ctx context.Context) error {
	for _, p := range b.proxies {
		if err := p.Rule(ctx, slices.Collect(maps.Values(b.services))); err != nil {
			return err
		}
		for _, way := range b.ways() {
			if _, err := way.from(p).Probe(load.Probe{Targets: []netip.AddrPort{b.target(p, way, udpPort)}, Timeout: netlab.Patient(20 * time.Second)}); err != nil {
				return fmt.Errorf("%s, %s: %w", p.Name, way.name, err)
			}
		}
		if err := b.passesBy(p); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) passesBy(p *proxy.Proxy) error {
	if err := p.Begin(); err != nil {
		return err
	}
	for _, from := range []*load.Host{p.Pod, p.OnNode, p.Outside} {
		if _, err := from.Probe(load.Probe{Targets: []netip.AddrPort{netip.AddrPortFrom(p.Remote.Addr(4), load.EchoPort)}, Timeout: netlab.Patient(20 * time.Second)}); err != nil {
			return fmt.Errorf("%s, straight to the pod: %w", p.Name, err)
		}
	}
	n, err := p.Counted()
	if err == nil && n != 0 {
		err = fmt.Errorf("requests straight to the pod went through %s: it counted %.0f", p.Name, n)
	}
	return err
}

// target is where a client sends to: the Service, or straight to the pod.
func (b *bench) target(p *proxy.Proxy, way path, port int) netip.AddrPort {
	s := b.services[way.service]
	if !p.Translates() {
		server := p.Remote
		if way.service != remote {
			server = p.Local
		}
		return netip.AddrPortFrom(server.Addr(way.version), uint16(s.Ports[port].Target))
	}
	if way.node {
		return p.NodePort(way.version, s.NodePorts[port])
	}
	return s.ClusterIP(way.version, port)
}
