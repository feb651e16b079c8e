package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/pods"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// Sockets implements dataplane.SocketTranslator.
func (a *accelerated) Sockets() *dataplane.Sockets {
	b := a.sockets
	if b == nil {
		return nil
	}
	out := &dataplane.Sockets{Mode: string(b.opts.SocketLB), Base: a.name, Reason: reasons(b.reason, b.programs.Narrow)}
	if what := a.trouble.Load(); what != nil {
		out.Reason = leftTrouble + *what
	}
	if t := b.told.Load(); t != nil {
		out.LeftPorts = t.left
	}
	if w := b.watching.Load(); w != nil {
		out.Namespaces, out.LeftNamespaces = w.Status()
	}
	if n := b.programs.Draining(); n > 0 {
		out.Draining = fmt.Sprintf("an older version still translates connections: %d entries in its table", n)
	}
	return out
}

// reasons joins those that there are.
func reasons(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(r string) bool { return r == "" }), "; ")
}

// SocketsOf implements dataplane.SocketTranslator.
func (a *accelerated) SocketsOf(client netip.Addr) dataplane.SocketWay {
	b := a.sockets
	left := func(why string) dataplane.SocketWay { return dataplane.SocketWay{Why: why} }
	switch {
	case b == nil || b.opts.SocketLB == Off:
		return left("--socket-lb=off")
	case a.trouble.Load() != nil:
		return left(a.Sockets().Reason)
	case b.holdsPods():
		return left("sockets of pods are left to packets while IPVS still has connections")
	case b.modeFlags&programs.SockFlagNODE_ONLY != 0 && b.reason != "":
		return left(b.reason)
	case b.modeFlags&programs.SockFlagNODE_ONLY != 0:
		return left("--socket-lb=node")
	case b.modeFlags&programs.SockFlagASK_NAMESPACES == 0 && b.programs.Narrow != "":
		return left(b.programs.Narrow)
	case b.modeFlags&programs.SockFlagASK_NAMESPACES == 0:
		return dataplane.SocketWay{AtSocket: true, Why: "--socket-lb=" + string(b.opts.SocketLB)}
	}
	w := b.watching.Load()
	if w == nil {
		return left("no Service is in the kernel yet")
	}
	why, known := w.Of(client.Unmap())
	switch {
	case !known:
		return left("its network namespace is not known; an unknown one is left to packets")
	case why != "":
		return left("in its network namespace: " + why)
	}
	return dataplane.SocketWay{AtSocket: true, Why: "its network namespace does not translate its own connections"}
}

// SurveyPods looks once into the network namespace of each pod below a cgroup
// ("": wherever cgroup v2 is mounted), as mode auto does. It tells how many have
// their sockets translated, and how many are left to packets, by reason.
func SurveyPods(cgroup string) (translated int, left map[string]int, err error) {
	root, err := programs.CgroupRoot(cgroup)
	if err != nil {
		return 0, nil, err
	}
	return pods.Survey(root)
}
