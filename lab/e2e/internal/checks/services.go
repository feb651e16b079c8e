package checks

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cluster"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// everyType is the types of Services and their policies, beside those of reach.
func (s *suite) everyType() []check {
	return []check{
		{"LoadBalancer whose address an operator sets in status", s.balanced},
		{"LoadBalancer, externalTrafficPolicy Local: the client's address is seen", s.balancedLocal},
		{"health check node port tells which nodes have Pods", s.healthChecks},
		{"NodePort, externalTrafficPolicy Local: nodes with Pods alone", s.nodePortLocal},
		{"ClusterIP, internalTrafficPolicy Local: nodes with Pods alone", s.clusterIPLocal},
		{"session affinity keeps a client at one Pod", s.affinity},
		{"external IPs from outside", s.externalIPs},
		{"ExternalName is left alone", s.externalName},
		{"reverse proxy behind a NodePort serves two hosts", s.ingress},
	}
}

// Addresses that objects.yaml and the operator of load balancers give. The
// outside client has a route for them through the first node.
func balancerIPs() []string      { return []string{"10.91.0.10", "fd00:91::10"} }
func localBalancerIPs() []string { return []string{"10.91.0.11", "fd00:91::11"} }
func externalAddresses() []string {
	return []string{"10.91.0.9", "fd00:91::9"}
}

// each is streams from one place to several addresses of a Service.
func each(from load.Place, addrs []string, count int) []stream {
	var all []stream
	for _, a := range addrs {
		all = append(all, stream{from, to(netip.MustParseAddr(a), port, count)})
	}
	return all
}

// operate sets the addresses of a Service of type LoadBalancer, as the operator
// of load balancers does, and waits until they answer.
func (s *suite) operate(ctx context.Context, service string, addrs []string) error {
	var ingress []string
	for _, a := range addrs {
		ingress = append(ingress, fmt.Sprintf(`{"ip": %q}`, a))
	}
	patch := fmt.Sprintf(`{"status": {"loadBalancer": {"ingress": [%s]}}}`, strings.Join(ingress, ", "))
	if _, err := s.lab.Kubectl(ctx, nil, "patch", "service", service, "-n", namespace, "--subresource=status", "--patch="+patch); err != nil {
		return err
	}
	return s.answering(ctx, service, each(s.ext, addrs, 1))
}

// answering waits until each stream is answered; its requests are not counted.
func (s *suite) answering(ctx context.Context, what string, streams []stream) error {
	const limit = 15 * time.Second
	return cluster.Wait(ctx, "the agents to program "+what, limit, func(ctx context.Context) error {
		reports, err := exchange(ctx, streams)
		if err == nil && failed(reports) {
			err = errors.New(firstError(reports))
		}
		return err
	})
}

func firstError(reports []load.Report) string {
	for _, r := range reports {
		if r.FirstError != "" {
			return r.Target.Name + ": " + r.FirstError
		}
	}
	return ""
}

func (s *suite) balanced(ctx context.Context) ([]load.Report, error) {
	const count = 60
	if err := s.operate(ctx, "balanced", balancerIPs()); err != nil {
		return nil, err
	}
	pods, err := s.settled(ctx, 2)
	if err != nil {
		return nil, err
	}
	streams := each(s.ext, balancerIPs(), count)
	streams = append(streams, each(s.pods[1], balancerIPs(), count)...)
	streams = append(streams, each(s.nodes[2], balancerIPs(), count)...)
	reports, err := exchange(ctx, streams)
	for _, r := range reports {
		err = errors.Join(err, answered(pods, r))
	}
	return reports, err
}

// balancedLocal comes in at the first node, which has the Pods.
func (s *suite) balancedLocal(ctx context.Context) ([]load.Report, error) {
	const count = 20
	if err := s.operate(ctx, "balanced-local", localBalancerIPs()); err != nil {
		return nil, err
	}
	streams := each(s.ext, localBalancerIPs(), count)
	for i := range streams {
		streams[i].to.Path = load.ClientIP
	}
	reports, err := exchange(ctx, streams)
	for i, want := range []netip.Addr{s.lab.Topology.Outside4, s.lab.Topology.Outside6} {
		if e := answered([]string{want.String()}, reports[i]); e != nil {
			err = errors.Join(err, fmt.Errorf("address of the client: %w", e))
		}
	}
	return reports, err
}

// healthChecks asks as a load balancer does: 200 where there is a Pod.
func (s *suite) healthChecks(ctx context.Context) ([]load.Report, error) {
	out, err := s.lab.Kubectl(ctx, nil, "get", "service", "balanced-local", "-n", namespace, "-o", "jsonpath={.spec.healthCheckNodePort}")
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort("192.0.2.1:" + string(out))
	if err != nil {
		return nil, fmt.Errorf("reading the health check node port: %w", err)
	}
	var streams []stream
	for _, n := range s.lab.Topology.Nodes {
		t := to(n.V4, at.Port(), 1)
		t.Path = "/healthz"
		streams = append(streams, stream{s.ext, t})
	}
	reports, err := exchange(ctx, streams)
	for i := range reports {
		r := &reports[i]
		if here := i == 0; (r.Failed == 0) != here || !here && !strings.Contains(r.FirstError, "503") {
			err = errors.Join(err, fmt.Errorf("%s at %s: %q", r.Target.Name, s.lab.Topology.Nodes[i].Name, r.FirstError))
		}
		r.Failed = 0
	}
	return reports, err
}

// localOnly wants answers of Pods of here through good, and none through bad.
func (s *suite) localOnly(ctx context.Context, good, bad []stream) ([]load.Report, error) {
	pods, err := s.lab.Pods(ctx, namespace, "app=here")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range pods {
		names = append(names, p.Name)
	}
	if err := s.answering(ctx, "a Service with a Local policy", good[:1]); err != nil {
		return nil, err
	}
	reports, err := exchange(ctx, good)
	for _, r := range reports {
		err = errors.Join(err, answered(names, r))
	}
	none, e := exchange(ctx, bad)
	for _, r := range none {
		if r.Failed != r.Requests || !strings.Contains(r.FirstError, "timeout") {
			e = errors.Join(e, fmt.Errorf("%s, where there is no Pod: %d of %d requests failed, with %q; want no answer at all",
				r.Target.Name, r.Failed, r.Requests, r.FirstError))
		}
	}
	return reports, errors.Join(err, e)
}

func (s *suite) nodePortLocal(ctx context.Context) ([]load.Report, error) {
	const count = 30
	var good, bad []stream
	for _, f := range families() {
		first, last := s.lab.Topology.Nodes[0], s.lab.Topology.Nodes[2]
		good = append(good, stream{s.ext, to(f.pick(first.V4, first.V6), nodeLocal, count)},
			stream{s.nodes[2], to(f.pick(last.V4, last.V6), nodeLocal, count)}) // the node itself gets there
		bad = append(bad, stream{s.ext, to(f.pick(last.V4, last.V6), nodeLocal, 1)})
	}
	return s.localOnly(ctx, good, bad)
}

func (s *suite) clusterIPLocal(ctx context.Context) ([]load.Report, error) {
	const count = 30
	v4, v6, err := s.lab.ClusterIPs(ctx, namespace, "here")
	if err != nil {
		return nil, err
	}
	var good, bad []stream
	for _, f := range families() {
		good = append(good, stream{s.pods[0], to(f.pick(v4, v6), port, count)}, stream{s.nodes[0], to(f.pick(v4, v6), port, count)})
		bad = append(bad, stream{s.pods[1], to(f.pick(v4, v6), port, 1)})
	}
	return s.localOnly(ctx, good, bad)
}

func (s *suite) affinity(ctx context.Context) ([]load.Report, error) {
	const count = 40
	v4, v6, err := s.lab.ClusterIPs(ctx, namespace, "affine")
	if err != nil {
		return nil, err
	}
	var streams []stream
	for _, f := range families() {
		for _, from := range []load.Place{s.pods[0], s.pods[1], s.nodes[2]} {
			streams = append(streams, stream{from, to(f.pick(v4, v6), port, count)})
		}
	}
	if err := s.answering(ctx, "Service affine", streams[:1]); err != nil {
		return nil, err
	}
	reports, err := exchange(ctx, streams)
	for _, r := range reports {
		if len(r.Answers) != 1 {
			err = errors.Join(err, fmt.Errorf("%s: answers came from %s, want one Pod", r.Target.Name, list(servers(r))))
		}
	}
	return reports, err
}

func (s *suite) externalIPs(ctx context.Context) ([]load.Report, error) {
	const count = 40
	return exchange(ctx, each(s.ext, externalAddresses(), count))
}

// externalName wants no agent to have complained of it or ended for it. The API
// server warns of Services, too. Agents report under the name of kube-proxy.
func (s *suite) externalName(ctx context.Context) ([]load.Report, error) {
	out, err := s.lab.Kubectl(ctx, nil, "get", "events", "-n", namespace,
		"--field-selector=type=Warning,involvedObject.kind=Service,reportingComponent=kube-proxy",
		"-o", "jsonpath={range .items[*]}{.involvedObject.name}: {.message}{'\\n'}{end}")
	if err != nil {
		return nil, err
	}
	if len(out) > 0 {
		return nil, fmt.Errorf("there are warnings: %s", out)
	}
	return nil, s.programmedAgents(ctx)
}

// programmedAgents wants every agent to be ready.
func (s *suite) programmedAgents(ctx context.Context) error {
	for _, n := range s.lab.Topology.Nodes {
		if err := s.lab.StartAgent(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// ingress asks a reverse proxy for two hosts, which it serves from two Services.
func (s *suite) ingress(ctx context.Context) ([]load.Report, error) {
	const count = 60
	if err := s.rolledOut(ctx, "deployment/ingress"); err != nil {
		return nil, err
	}
	web, err := s.settled(ctx, 2)
	if err != nil {
		return nil, err
	}
	solo, err := s.lab.Pods(ctx, namespace, "app=solo")
	if err != nil {
		return nil, err
	}
	hosts := map[string][]string{"web.lab.test": web, "solo.lab.test": {solo[0].Name}}
	var streams []stream
	for host := range hosts {
		for _, f := range families() {
			for _, n := range s.lab.Topology.Nodes {
				t := to(f.pick(n.V4, n.V6), nodeIngress, count)
				t.Host, t.Name = host, host+" at "+t.Name
				streams = append(streams, stream{s.ext, t})
			}
		}
	}
	if err := s.answering(ctx, "the reverse proxy", streams); err != nil {
		return nil, err
	}
	reports, err := exchange(ctx, streams)
	for _, r := range reports {
		err = errors.Join(err, answered(slices.Clone(hosts[r.Target.Host]), r))
	}
	return reports, err
}
