package inspect

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Sockets is how connections are translated at their sockets.
type Sockets struct {
	Mode   string `json:"mode"` // --socket-lb
	Base   string `json:"base"` // the packet backend that serves what sockets leave
	Reason string `json:"reason,omitempty"`
	// ServicePorts and namespaces of pods that sockets leave to the base, by reason.
	LeftServicePorts map[string]int `json:"leftServicePorts,omitempty"`
	Namespaces       int            `json:"namespaces,omitempty"` // of pods, that are translated
	LeftNamespaces   map[string]int `json:"leftNamespaces,omitempty"`
	Draining         string         `json:"draining,omitempty"`
}

// sockets describes them; nil: none are translated.
func (i *Inspector) sockets() *Sockets {
	if i.Sockets == nil {
		return nil
	}
	s := i.Sockets.Sockets()
	if s == nil {
		return nil
	}
	return &Sockets{
		Mode: s.Mode, Base: s.Base, Reason: s.Reason, LeftServicePorts: s.LeftPorts,
		Namespaces: s.Namespaces, LeftNamespaces: s.LeftNamespaces, Draining: s.Draining,
	}
}

// Lines say in plain words how sockets are translated.
func (s *Sockets) Lines() []string {
	lines := []string{fmt.Sprintf("translated on top of %s (--socket-lb=%s)", s.Base, s.Mode)}
	if s.Reason != "" {
		lines = append(lines, s.Reason)
	}
	if s.Namespaces > 0 {
		lines = append(lines, fmt.Sprintf("pods' network namespaces translated: %d", s.Namespaces))
	}
	for _, why := range slices.Sorted(maps.Keys(s.LeftNamespaces)) {
		lines = append(lines, fmt.Sprintf("pods' network namespaces left to %s: %d (%s)", s.Base, s.LeftNamespaces[why], why))
	}
	for _, why := range slices.Sorted(maps.Keys(s.LeftServicePorts)) {
		lines = append(lines, fmt.Sprintf("Service ports left to %s: %d (%s)", s.Base, s.LeftServicePorts[why], why))
	}
	if s.Draining != "" {
		lines = append(lines, s.Draining)
	}
	return lines
}

// way tells whether a client's connections are translated at its socket, and
// why. Why is empty if no client's are.
func (i *Inspector) way(q question, c client) (atSocket bool, why string) {
	if i.Sockets == nil || !c.pod && !c.node {
		return false, ""
	}
	s := i.Sockets.Sockets()
	if s == nil {
		return false, ""
	}
	packets := func(why string) (bool, string) {
		return false, fmt.Sprintf("its packets are translated, by %s: %s", s.Base, why)
	}
	bound := func(p netip.Prefix) bool { return p.Contains(q.frontend.Addr.Addr()) }
	switch {
	case q.protocol == dataplane.SCTP:
		return packets("an association of SCTP has more than one address")
	case len(q.frontend.Sources) > 0:
		return packets("who may come in is decided by the client's address")
	case q.frontend.Kind != dataplane.NodePort && slices.ContainsFunc(q.around.Snapshot.Node.Bound, bound):
		return packets("the address is one of the node's own")
	case q.protocol == dataplane.UDP:
		return packets("a UDP socket that is connected is left to packets; one that is not is translated as it sends")
	}
	if c.node && !c.pod {
		return true, "its socket is translated as it connects, unless its program chose its port"
	}
	if !c.from.IsValid() {
		return s.Mode != "node", fmt.Sprintf("its socket may be translated as it connects (--socket-lb=%s); --from tells of one pod", s.Mode)
	}
	w := i.Sockets.SocketsOf(c.from)
	if !w.AtSocket {
		return packets(w.Why)
	}
	return true, "its socket is translated as it connects, unless its program chose its port: " + w.Why
}
