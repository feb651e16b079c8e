// Package traffic measures what requests cost on their way through each proxy.
package traffic

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Config says how much is measured.
type Config struct {
	Rounds   int
	Sample   time.Duration // of one metric in one round
	Bytes    string        // of one iperf3 run, as iperf3 has it
	Rate     int           // of the open loop
	Few      bool          // just the most telling cases
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

func paths(few bool) []path {
	all := []path{
		{result.PodToClusterIP, fromPod, remote, false, 4},
		{result.OutsideToNodePort, fromOutside, remote, true, 4},
		{"pod to ClusterIP, endpoint on its node", fromPod, local, false, 4},
		{"node to ClusterIP, endpoint on another node", fromNode, remote, false, 4},
		{"outside to NodePort, endpoint on that node", fromOutside, local, true, 4},
		{"outside to NodePort, externalTrafficPolicy Local", fromOutside, localOnly, true, 4},
		{result.PodToClusterIP + ", IPv6", fromPod, remote, false, 6},
		{result.OutsideToNodePort + ", IPv6", fromOutside, remote, true, 6},
	}
	if few {
		return all[:2]
	}
	return all
}

// The ports of each Service, by their index.
const (
	tcpPort = iota
	udpPort
	sinkPort
	iperfPort
)

func ports() []control.Port {
	return []control.Port{
		{Protocol: corev1.ProtocolTCP, Port: 80, Target: load.EchoPort},
		{Protocol: corev1.ProtocolUDP, Port: 80, Target: load.EchoPort},
		{Protocol: corev1.ProtocolUDP, Port: 81, Target: load.SinkPort},
		{Protocol: corev1.ProtocolTCP, Port: proxy.IperfPort, Target: proxy.IperfPort},
	}
}

// bench is a run.
type bench struct {
	Config
	proxies  []*proxy.Proxy
	services map[string]*control.Placed
	report   *result.Report
	curves   map[result.Key]*hdrhistogram.Histogram
}

// Run measures all paths, round by round, each proxy in turn.
func Run(ctx context.Context, cfg Config, plane *control.Plane, proxies []*proxy.Proxy, report *result.Report) error {
	b := &bench{Config: cfg, proxies: proxies, report: report, services: map[string]*control.Placed{}, curves: map[result.Key]*hdrhistogram.Histogram{}}
	here, there := proxies[0].Endpoints() // the same in each lab
	for name, e := range map[string]control.Endpoint{remote: there, local: here, localOnly: here} {
		s := control.Service{Name: name, Ports: ports(), DualStack: true, NodePort: true, Local: name == localOnly, Endpoints: []control.Endpoint{e}}
		placed, err := plane.Create(ctx, s)
		if err != nil {
			return err
		}
		b.services[name] = placed
	}
	if err := b.warmUp(); err != nil {
		return err
	}
	for round := range cfg.Rounds {
		for _, way := range paths(cfg.Few) {
			cfg.Progress("round %d of %d: %s", round+1, cfg.Rounds, way.name)
			for i := range proxies {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				if err := b.measure(proxies[(i+round)%len(proxies)], way); err != nil {
					return err
				}
			}
		}
	}
	b.keepCurves()
	return nil
}

// warmUp waits until every path works, sends some traffic along it, and sees
// that requests straight to the pod pass by each proxy.
func (b *bench) warmUp() error {
	for _, p := range b.proxies {
		for _, way := range paths(b.Few) {
			if _, err := way.from(p).Probe(load.Probe{Targets: []netip.AddrPort{b.target(p, way, udpPort)}, Timeout: netlab.Patient(20 * time.Second)}); err != nil {
				return fmt.Errorf("%s, %s: %w", p.Name, way.name, err)
			}
			if _, err := way.from(p).Run(load.Job{Kind: load.ConnectRate, Targets: []netip.AddrPort{b.target(p, way, tcpPort)}, Duration: b.Sample / 4}); err != nil {
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
		if _, err := from.Run(load.Job{Kind: load.ConnectRate, Targets: []netip.AddrPort{netip.AddrPortFrom(p.Remote.Addr(4), load.EchoPort)}, Duration: b.Sample / 10}); err != nil {
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
	if !p.Runs() {
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
