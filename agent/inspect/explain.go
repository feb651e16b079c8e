package inspect

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/policy"
)

// Outcomes of a connection.
const (
	Balanced = "balanced"
	Rejected = "rejected"
	Dropped  = "dropped"
)

// Kinds of clients.
const (
	Pod     = "pod"
	OnNode  = "node"
	Outside = "outside"
)

// question is an address that somebody asks about, and what was found there.
type question struct {
	to       netip.AddrPort
	protocol dataplane.Protocol
	around   watcher.Around
	found    policy.Explained
	frontend dataplane.Frontend
}

// Question is what is asked of Explain.
type Question struct {
	To       netip.AddrPort
	Protocol dataplane.Protocol
	From     netip.Addr // the client; not valid: each kind of client
	// NoKernel leaves out what the kernel holds, which takes a while to read
	// where there are very many Services.
	NoKernel bool
}

// Explain answers what becomes of connections to an address and port.
func (i *Inspector) Explain(ctx context.Context, asked Question) (Explanation, error) {
	q := question{to: asked.To, protocol: asked.Protocol, around: i.Watcher.Around()}
	out := Explanation{To: asked.To.String(), Protocol: asked.Protocol.String()}
	if q.around.Snapshot == nil {
		return out, unknownYet{i.Watcher.Status().Waiting}
	}
	if !i.find(&q, &out) {
		out.Otherwise = i.otherwise(q)
		return out, nil
	}
	service := describe(q.found)
	out.Service = &service
	for _, f := range q.found.Built.Frontends {
		if f.Addr == q.frontend.Addr {
			d := describeFrontend(f)
			out.Frontend = &d
		}
	}
	for _, c := range i.clients(q, asked.From) {
		out.Clients = append(out.Clients, i.answer(q, c))
	}
	if !asked.NoKernel {
		out.Kernel = i.kernel(ctx, q)
	}
	return out, nil
}

// find looks for the Service that answers there.
func (i *Inspector) find(q *question, out *Explanation) bool {
	at := []netip.AddrPort{q.to}
	if takesNodePorts(q.around.Snapshot.Node, q.to.Addr()) {
		at = append(at, netip.AddrPortFrom(dataplane.FamilyOf(q.to.Addr()).Unspecified(), q.to.Port()))
	}
	for _, addr := range at {
		x, without, ok := i.Watcher.At(addr, q.protocol)
		if !ok || x.Built == nil {
			continue
		}
		for _, f := range x.Built.Frontends {
			if f.Addr == addr {
				q.found, q.frontend, out.Without = x, f, without
				return true
			}
		}
	}
	return false
}

func takesNodePorts(n *dataplane.Node, a netip.Addr) bool {
	return within(a, n.NodePorts)
}

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// client is one client, or stands for a kind of them.
type client struct {
	from      netip.Addr // not valid: a kind
	pod, node bool
	because   string
}

func (c client) is() string {
	switch {
	case c.pod:
		return Pod
	case c.node:
		return OnNode
	}
	return Outside
}

// clients are those to answer for.
func (i *Inspector) clients(q question, from netip.Addr) []client {
	pods := q.around.Snapshot.Node.LocalPods
	if !from.IsValid() {
		var out []client
		if pods.Detects(dataplane.FamilyOf(q.to.Addr())) {
			out = append(out, client{pod: true})
		}
		out = append(out, client{node: true})
		if !q.to.Addr().IsLoopback() {
			out = append(out, client{})
		}
		return out
	}
	c := client{from: from}
	c.node = from.IsLoopback() || within(from, q.around.Local)
	for _, p := range pods.CIDRs {
		if p.Contains(from) {
			c.pod, c.because = true, fmt.Sprintf("its address is in %s", p)
		}
	}
	if name := pods.Interface + pods.InterfacePrefix; name != "" && !c.node {
		c.pod, c.because = i.behind(from, pods)
	}
	switch {
	case c.because != "":
	case c.node:
		c.because = "its address is this node's"
	case pods.Detects(dataplane.FamilyOf(from)):
		c.because = "its address is neither this node's nor in " + ofFamily(pods.CIDRs, from)
	default:
		c.because = "its address is not this node's, and pods are not told from others (no --cluster-cidr)"
	}
	return []client{c}
}

// ofFamily is the range that has the pods of an address's family.
func ofFamily(ranges []netip.Prefix, a netip.Addr) string {
	for _, p := range ranges {
		if dataplane.FamilyOf(p.Addr()) == dataplane.FamilyOf(a) {
			return p.String()
		}
	}
	return "a range of pods"
}

// behind tells whether packets of an address come in as pods' do.
func (i *Inspector) behind(from netip.Addr, pods dataplane.LocalPods) (bool, string) {
	device, err := i.Device(from)
	if err != nil {
		return false, fmt.Sprintf("no route to it tells the device that it comes in through: %v", err)
	}
	is := device == pods.Interface || pods.InterfacePrefix != "" && strings.HasPrefix(device, pods.InterfacePrefix)
	if is {
		return true, "it comes in through " + device
	}
	return false, fmt.Sprintf("it comes in through %s, which is no pod's device", device)
}

// kernel is what the kernel holds at the frontend.
func (i *Inspector) kernel(ctx context.Context, q question) *Kernel {
	have, want, err := i.Syncer.Observe(ctx)
	if err != nil {
		return &Kernel{Error: err.Error()}
	}
	k := kernelOf(have, dataplane.Expect(want), q.protocol, q.frontend.Addr)
	return &k
}

// otherwise is what happens at an address that is no Service's (§1.7).
func (i *Inspector) otherwise(q question) string {
	var also []string
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		other := q
		if other.protocol = p; p != q.protocol && i.find(&other, &Explanation{}) {
			also = append(also, fmt.Sprintf("%s there is %s's", p, other.found.ID))
		}
	}
	said := i.withoutService(q)
	if len(also) > 0 {
		said += "; but " + strings.Join(also, ", ")
	}
	return said
}

func (i *Inspector) withoutService(q question) string {
	addr, snap := q.to.Addr(), q.around.Snapshot
	bound := within(addr, q.around.Local)
	ports := portsAt(snap, addr)
	node := netip.AddrPortFrom(dataplane.FamilyOf(addr).Unspecified(), q.to.Port())
	x, _, isNodePort := i.Watcher.At(node, q.protocol)
	switch {
	case len(ports) > 0 && !bound:
		return fmt.Sprintf("it is the ClusterIP of a Service that has no such port, only %s: rejected", strings.Join(ports, ", "))
	case within(addr, snap.ServiceCIDRs) && !bound:
		return "it is in the range of ClusterIPs, and no Service has it: dropped"
	case isNodePort && (bound || addr.IsLoopback()):
		return fmt.Sprintf("%d is the NodePort of %s, but this address takes no NodePorts (--nodeport-addresses): "+
			"it goes to the node's own processes", q.to.Port(), x.ID)
	case bound || addr.IsLoopback():
		return "it is this node's own address, and no Service has this port: it goes to the node's own processes"
	}
	for _, x := range i.Watcher.Explain(func(facts.Name) bool { return true }) {
		if slices.ContainsFunc(x.Endpoints, func(e policy.Judged) bool { return e.Addr == q.to }) {
			return fmt.Sprintf("it is an endpoint of %s: it goes straight there, past all Services", x.ID)
		}
	}
	return "no Service has it: it is routed as any other address"
}

// portsAt are the ports of the Services whose ClusterIP an address is.
func portsAt(s *dataplane.Snapshot, addr netip.Addr) []string {
	var out []string
	for p := range s.Ports.All() {
		for _, f := range p.Frontends {
			if f.Kind == dataplane.ClusterIP && f.Addr.Addr() == addr {
				out = append(out, fmt.Sprintf("%d/%s (%s/%s)", f.Addr.Port(), p.ID.Protocol, p.ID.Namespace, p.ID.Service))
			}
		}
	}
	return out
}
