package inspect

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Inspector answers questions about a running agent.
type Inspector struct {
	Version  string
	Started  time.Time
	NodeName string
	Backend  Backend
	Families []dataplane.Family
	// Lacking says why not all address families are programmed. Nil means that all are.
	Lacking error
	Watcher *watcher.Watcher
	Syncer  *dataplane.Syncer
	Health  func() Health
	// Contacts returns how the API server last answered; nil: nobody asks one.
	Contacts func() []Contact
	// Leftovers returns what other backends and kube-proxy left in the kernel, by
	// whose it is; nil: nobody looks.
	Leftovers func() map[string][]string
	// Firewall returns which rules of the host's firewall are kept open for Services,
	// and why some could not be; nil: nobody looks.
	Firewall func() ([]string, error)
	// VerifyInterval is how often the Syncer compares by itself.
	VerifyInterval time.Duration
	// Flows calls visit with each connection through a Service that the kernel
	// knows of, and Counted says which those are; nil: nobody counts them.
	Flows   func(ctx context.Context, visit func(dataplane.Flow)) error
	Counted string
	// Sockets translates connections of this node's processes and pods at their
	// sockets, where nothing is masqueraded (docs/adr/0004); nil: nobody does.
	Sockets dataplane.SocketTranslator
	// Device names the network device through which an address is reached.
	Device func(netip.Addr) (string, error)
}

func (i *Inspector) firewall() *Firewall {
	if i.Firewall == nil {
		return nil
	}
	var f Firewall
	var err error
	if f.KeptOpen, err = i.Firewall(); err != nil {
		f.Error = err.Error()
	}
	return &f
}

// Status answers how all stands.
func (i *Inspector) Status() Status {
	around, watch := i.Watcher.Around(), i.Watcher.Status()
	sync, drift := i.Syncer.Status(), i.Syncer.Drift()
	s := Status{
		Version: i.Version,
		Started: i.Started,
		Node:    Node{Name: i.NodeName, NodePorts: []string{}},
		Backend: i.Backend,
		Sockets: i.sockets(),
		Health:  i.Health(),
		Sync:    Sync{Wanted: sync.Wanted, InForce: sync.InForce, BehindSince: sync.Behind, LastSync: sync.LastSync},
		Drift: Drift{
			EverySeconds: i.VerifyInterval.Seconds(), Checks: drift.Checks, Found: drift.Found,
			Repairs: drift.Repairs, LastCheck: drift.LastCheck,
		},
	}
	s.Health.NodeEligible = watch.NodeEligible
	if i.Contacts != nil {
		s.Source = i.Contacts()
	}
	if i.Leftovers != nil {
		s.Leftovers = i.Leftovers()
	}
	s.Firewall = i.firewall()
	if sync.Err != nil {
		s.Sync.Error = sync.Err.Error()
	}
	if last := drift.LastFound; !last.At.IsZero() {
		s.Drift.LastFound = &VerifyEvent{At: last.At, Differences: last.Differences, Repaired: last.Repaired}
	}
	for _, r := range sync.Refused {
		s.Refused = append(s.Refused, fmt.Sprintf("%s: %v", r.ID, r.Err))
	}
	for _, f := range i.Families {
		s.Node.Families = append(s.Node.Families, f.String())
	}
	if i.Lacking != nil {
		s.Node.Lacking = i.Lacking.Error()
	}
	for _, c := range watch.Conflicts {
		s.Conflicts = append(s.Conflicts, c.String())
	}
	if snap := around.Snapshot; snap != nil {
		// The Syncer may be about to take what is counted here.
		s.Sync.Wanted = max(s.Sync.Wanted, snap.Revision)
		s.Node.Zone, s.Node.LocalPods = snap.Node.Zone, describePods(snap.Node.LocalPods)
		for _, p := range snap.Node.NodePorts {
			s.Node.NodePorts = append(s.Node.NodePorts, shortPrefix(p))
		}
		s.Counts = count(snap)
	}
	return s
}

func count(s *dataplane.Snapshot) Counts {
	var c Counts
	var last facts.Name
	for p := range s.Ports.All() {
		if name := (facts.Name{Namespace: p.ID.Namespace, Name: p.ID.Service}); name != last {
			c.Services++
			last = name
		}
		c.ServicePorts++
		c.Frontends += len(p.Frontends)
		used := map[netip.AddrPort]bool{}
		for _, f := range p.Frontends {
			for _, pool := range []*dataplane.Pool{f.Pool, f.Inside} {
				if pool == nil {
					continue
				}
				for _, e := range pool.Endpoints {
					used[e.Addr] = true
				}
			}
		}
		c.Endpoints += len(used)
	}
	return c
}

func describePods(l dataplane.LocalPods) string {
	switch {
	case l.Interface != "":
		return "they come in through " + l.Interface
	case l.InterfacePrefix != "":
		return "they come in through " + l.InterfacePrefix + "*"
	case len(l.CIDRs) > 0:
		words := make([]string, len(l.CIDRs))
		for i, c := range l.CIDRs {
			words[i] = c.String()
		}
		return "their addresses are in " + strings.Join(words, " or ")
	}
	return "they are not told from others (no --cluster-cidr)"
}

// shortPrefix leaves out the length of a whole address.
func shortPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Verify compares the kernel with what is wanted.
func (i *Inspector) Verify(ctx context.Context, repair bool) (Verification, error) {
	v, err := i.Syncer.Verify(ctx, repair)
	if err != nil {
		return Verification{}, fmt.Errorf("reading the kernel back: %w", err)
	}
	if v.Differences == nil {
		v.Differences = []string{}
	}
	return Verification{
		At: v.At, TookSeconds: v.Took.Seconds(), Revision: v.Revision,
		Differences: v.Differences, Repaired: v.Repaired, Left: v.Left,
	}, nil
}

// unknownYet says that nothing is known before the first Snapshot.
type unknownYet struct{ waiting string }

func (e unknownYet) Error() string { return "nothing is known yet: waiting for " + e.waiting }

// notFound says that there is no such Service.
type notFound struct{ name string }

func (e notFound) Error() string {
	return fmt.Sprintf("there is no Service %s with a ClusterIP, as far as the agent knows", e.name)
}

// Services answers which Services there are: one, those of a namespace (name
// ""), or all. A name without a namespace is looked for in all.
func (i *Inspector) Services(ctx context.Context, namespace, name string) (Services, error) {
	if s := i.Watcher.Status(); !s.Synced {
		return Services{}, unknownYet{s.Waiting}
	}
	found := i.Watcher.Explain(func(n facts.Name) bool {
		return (namespace == "" || n.Namespace == namespace) && (name == "" || n.Name == name)
	})
	if len(found) == 0 && name != "" {
		what := name
		if namespace != "" {
			what = namespace + "/" + name
		}
		return Services{}, notFound{what}
	}
	out := Services{Services: []Service{}}
	flows, counted := i.flows(ctx)
	out.Counted = counted
	for _, x := range found {
		s := describe(x)
		if flows != nil {
			flows.countInto(x, &s)
		}
		out.Services = append(out.Services, s)
	}
	return out, nil
}

// flows are the connections through Services, by where they go.
type flows struct {
	by    map[flowKey]*tally
	bytes bool
}

// flowKey leaves the address of a NodePort's client side out, because all of the
// node's addresses are one frontend.
type flowKey struct {
	protocol dataplane.Protocol
	dst      netip.AddrPort // the address unspecified: any
	endpoint netip.AddrPort
}

type tally struct{ connections, bytes uint64 }

// flows counts connections; nil: nobody does.
func (i *Inspector) flows(ctx context.Context) (f *flows, counted string) {
	if i.Flows == nil {
		return nil, ""
	}
	f = &flows{by: map[flowKey]*tally{}}
	err := i.Flows(ctx, func(c dataplane.Flow) {
		f.bytes = f.bytes || c.Counted
		anywhere := netip.AddrPortFrom(dataplane.FamilyOf(c.Dst.Addr()).Unspecified(), c.Dst.Port())
		for _, dst := range []netip.AddrPort{c.Dst, anywhere} {
			f.add(flowKey{c.Protocol, dst, c.Endpoint}, c.Bytes)
		}
	})
	if err != nil {
		return nil, "not at all: " + err.Error()
	}
	return f, i.Counted
}

func (f *flows) add(k flowKey, bytes uint64) {
	t := f.by[k]
	if t == nil {
		t = &tally{}
		f.by[k] = t
	}
	t.connections++
	t.bytes += bytes
}

// total is the connections to an endpoint by any of the frontends.
func (f *flows) total(p *dataplane.ServicePort, endpoint netip.AddrPort) tally {
	var sum tally
	for _, front := range p.Frontends {
		if t := f.by[flowKey{p.ID.Protocol, front.Addr, endpoint}]; t != nil {
			sum.connections += t.connections
			sum.bytes += t.bytes
		}
	}
	return sum
}

// agrees compares one frontend as the kernel has it with what is wanted.
func kernelOf(have, want *dataplane.Observation, protocol dataplane.Protocol, addr netip.AddrPort) Kernel {
	pick := func(o *dataplane.Observation) *dataplane.Observation {
		return &dataplane.Observation{Frontends: slices.DeleteFunc(slices.Clone(o.Frontends), func(f dataplane.ObservedFrontend) bool {
			return f.Protocol != protocol || f.Addr != addr
		})}
	}
	held := func(o *dataplane.Observation) *Held {
		if len(o.Frontends) == 0 {
			return nil
		}
		f := o.Frontends[0]
		return &Held{Outside: f.Pool.String(), Inside: f.Inside.String()}
	}
	here, wanted := pick(have), pick(want)
	k := Kernel{Holds: held(here), Differences: here.Differences(wanted)}
	if w := held(wanted); w != nil {
		k.Wanted = *w
	}
	k.Agrees = len(k.Differences) == 0
	k.Elsewhere = len(have.Differences(want)) - len(k.Differences)
	return k
}
