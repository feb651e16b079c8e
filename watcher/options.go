package watcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/addrs"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// Options are what an operator decides; New checks them.
type Options struct {
	Log      *slog.Logger // required
	NodeName string       // required; compared in lower case
	// Families to forward; at least one. What an object says of another family
	// is ignored.
	Families []dataplane.Family
	// NodeIPs replace the addresses of the Node object, at most one of each
	// family (kube-proxy's bindAddress). Unspecified addresses are ignored.
	NodeIPs []netip.Addr

	DetectLocal DetectLocal

	// NodePortAddresses choose the addresses where NodePorts answer: CIDRs and
	// the words "primary", "localhost" and "all"; empty: all (KUBE-PROXY §1.10).
	NodePortAddresses []string
	// LocalhostNodePorts lets NodePorts answer on 127.0.0.0/8, where
	// NodePortAddresses cover it.
	LocalhostNodePorts bool
	MasqueradeAll      bool // masquerade pods on the way to a ClusterIP too
	ExternalIPs        bool // serve spec.externalIPs

	// NodeWait is how long the first Snapshot waits, once Services and
	// EndpointSlices are known, for a Node that has addresses; 0: 30 s.
	// PodCIDRWait is the same for its pod ranges, where they tell local pods;
	// 0: 5 min.
	NodeWait, PodCIDRWait time.Duration
	// Addresses reports what is local on this node, at once and on each change,
	// until the context ends. Nil means addrs.Follow.
	Addresses func(ctx context.Context, report func([]netip.Prefix)) error
	// Programming, if set, is told of each Snapshot when the changes that it
	// brings happened, as their EndpointSlices tell, for the metric
	// network_programming_duration_seconds. Next calls it.
	Programming func(revision uint64, triggers []time.Time)
	// Conflict, if set, is told once of each Service that does not get what it
	// wants because another one has it, by those few nodes that report what all
	// of them know (Speaks). Next calls it.
	Conflict func(Loss)
}

// DetectLocalMode is how packets from this node's pods are told (KUBE-PROXY
// §1.13). The values are kube-proxy's.
type DetectLocalMode string

// The modes.
const (
	ClusterCIDR         DetectLocalMode = "ClusterCIDR" // the default
	NodeCIDR            DetectLocalMode = "NodeCIDR"
	BridgeInterface     DetectLocalMode = "BridgeInterface"
	InterfaceNamePrefix DetectLocalMode = "InterfaceNamePrefix"
)

// DetectLocal is a DetectLocalMode and its value.
type DetectLocal struct {
	Mode         DetectLocalMode // "": ClusterCIDR
	ClusterCIDRs []netip.Prefix  // of each family the first counts; none: pods are not told apart
	Interface    string          // the bridge's name, or the start of the interfaces' names
}

const (
	defaultNodeWait    = 30 * time.Second
	defaultPodCIDRWait = 5 * time.Minute
)

// settings are Options, checked and completed.
type settings struct {
	Options
	nodePorts nodePortAddresses
}

func newSettings(o Options) (settings, error) {
	s := settings{Options: o}
	s.NodeName = strings.ToLower(strings.TrimSpace(o.NodeName))
	switch {
	case o.Log == nil:
		return s, errors.New("watcher: no logger")
	case s.NodeName == "":
		return s, errors.New("watcher: no node name")
	case len(o.Families) == 0:
		return s, errors.New("watcher: no address family")
	}
	s.Families = slices.Compact(slices.Sorted(slices.Values(o.Families)))
	s.NodeIPs = slices.DeleteFunc(slices.Clone(o.NodeIPs), netip.Addr.IsUnspecified)
	if err := o.DetectLocal.check(); err != nil {
		return s, err
	}
	var err error
	if s.nodePorts, err = parseNodePortAddresses(o.NodePortAddresses); err != nil {
		return s, err
	}
	if s.NodeWait == 0 {
		s.NodeWait = defaultNodeWait
	}
	if s.PodCIDRWait == 0 {
		s.PodCIDRWait = defaultPodCIDRWait
	}
	if s.Addresses == nil {
		s.Addresses = func(ctx context.Context, report func([]netip.Prefix)) error {
			return addrs.Follow(ctx, o.Log, report)
		}
	}
	return s, nil
}

func (d DetectLocal) check() error {
	switch d.Mode {
	case ClusterCIDR, NodeCIDR, "":
		return nil
	case BridgeInterface, InterfaceNamePrefix:
		if d.Interface == "" {
			return fmt.Errorf("detect-local mode %s needs the name of an interface", d.Mode)
		}
		return nil
	}
	return fmt.Errorf("detect-local mode %q: allowed are %s, %s, %s and %s",
		d.Mode, ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix)
}

// localPods is how pods are told with what is known of the Node (nil: nothing).
func (s *settings) localPods(node *facts.Node) dataplane.LocalPods {
	var l dataplane.LocalPods
	switch s.DetectLocal.Mode {
	case NodeCIDR:
		if node != nil {
			l.CIDRs = s.firstOfEachFamily(node.PodCIDRs)
		}
	case BridgeInterface:
		l.Interface = s.DetectLocal.Interface
	case InterfaceNamePrefix:
		l.InterfacePrefix = s.DetectLocal.Interface
	default:
		l.CIDRs = s.firstOfEachFamily(s.DetectLocal.ClusterCIDRs)
	}
	return l
}

// firstOfEachFamily picks by family as kube-proxy does; sorted.
func (s *settings) firstOfEachFamily(in []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range s.Families {
		i := slices.IndexFunc(in, func(p netip.Prefix) bool { return dataplane.FamilyOf(p.Addr()) == f })
		if i >= 0 {
			out = append(out, in[i].Masked())
		}
	}
	return out
}

// nodeIPs are this node's primary addresses, at most one of each family; the
// Options' come first.
func (s *settings) nodeIPs(node *facts.Node) []netip.Addr {
	known := s.NodeIPs
	if node != nil {
		known = slices.Concat(known, node.IPs)
	}
	var out []netip.Addr
	for _, f := range s.Families {
		i := slices.IndexFunc(known, func(a netip.Addr) bool { return dataplane.FamilyOf(a) == f })
		if i >= 0 {
			out = append(out, known[i])
		}
	}
	return out
}
