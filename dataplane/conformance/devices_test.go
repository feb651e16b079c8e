package conformance

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	bpf "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// tcNeighbours attach programs to devices, as CNIs, flow exporters and policy
// agents do (aws/aws-network-policy-agent#480, netobserv/netobserv-ebpf-agent#822,
// projectcalico/calico#7698).
func tcNeighbours() []neighbour {
	const next, pass, reclassify, pipe = -1, 0, 1, 3 // of tc; tcx takes the last two for next
	return append([]neighbour{
		{name: "tc filters on all devices, both ways, that end with TC_ACT_OK change nothing", setUp: tcOnAll(pass)},
		{name: "tc filters on all devices, both ways, that end with TC_ACT_UNSPEC change nothing", setUp: tcOnAll(next)},
		{name: "tc filters on all devices, both ways, that end with TC_ACT_RECLASSIFY and TC_ACT_PIPE change nothing", setUp: tcOnAll(reclassify, pipe)},
		{name: "tcx programs on all devices, both ways, before all others, that pass packets change nothing", setUp: tcxOnAll(pass, link.Head())},
		{name: "tcx programs on all devices, both ways, after all others, that pass packets change nothing", setUp: tcxOnAll(pass, link.Tail())},
		{name: "tcx programs on all devices, both ways, before all others, that leave packets to the next change nothing", setUp: tcxOnAll(next, link.Head())},
		{name: "tcx programs on all devices, both ways, before and after all others, that end with TC_ACT_RECLASSIFY and TC_ACT_PIPE change nothing", setUp: func(r *run, n *netlab.Node) {
			tcxOnAll(reclassify, link.Head())(r, n)
			tcxOnAll(pipe, link.Tail())(r, n)
		}},
		shellNeighbour("the uplink's packets by way of an ifb device change nothing",
			"ip link add ifb-up type ifb; ip link set ifb-up up; tc qdisc add dev eth0 ingress; "+redirect("eth0", "ifb-up"),
			"tc qdisc del dev eth0 ingress; ip link del ifb-up"),
		shellNeighbour("pods' bandwidth limits, by way of ifb devices, change nothing",
			"for i in 1 2 3 4; do ip link add ifb$i type ifb; ip link set ifb$i up; tc qdisc add dev pod$i ingress; "+redirect("pod$i", "ifb$i")+
				"; for d in pod$i ifb$i; do tc qdisc add dev $d root tbf rate 1gbit burst 1mb latency 25ms; done; done",
			"for i in 1 2 3 4; do tc qdisc del dev pod$i ingress; tc qdisc del dev pod$i root; ip link del ifb$i; done"),
		{name: "pods on a bridge, which ask each other straight, change nothing", setUp: podsOnBridge},
		{name: "pods on a bridge whose ports have tc filters that end with TC_ACT_OK change nothing", setUp: func(r *run, n *netlab.Node) {
			podsOnBridge(r, n)
			tcOnAll(pass)(r, n)
		}},
	}, cuts()...)
}

// cuts are filters that take all packets that come in by one device of each node.
// They win, and harm nobody who does without those packets.
func cuts() []neighbour {
	const drop = 2
	devices := []struct {
		what, name string
		holds      func(*run) []probe
	}{
		{"an endpoint sends", netlab.PodInterfacePrefix + "1", func(r *run) []probe {
			return slices.Concat(toEach(kinds, "here", from("outside").dropped()), toEach(kinds, "empty", from("outside").rejected()),
				[]probe{
					from("a3").to(clusterIP, "here").dropped(), from("node-a").to(clusterIP, "here").dropped(), from("b3").to(clusterIP, "there").dropped(),
					from("a3").to(clusterIP, "empty").rejected(), from("a3").toAddr("pod a2", r.straight("a2")).reaches("a2"),
				})
		}},
		{"a client pod sends", netlab.PodInterfacePrefix + "3", func(*run) []probe {
			return slices.Concat(toEach(kinds, "here", from("a3").dropped()), toEach(kinds, "there", from("b3").dropped()),
				toEach(kinds, "here", from("outside").reaches("a1")), toEach(kinds, "there", from("outside").reaches("b1")),
				toEach(kinds, "here", from("a4").reaches("a1")), toEach(kinds, "there", from("a4").reaches("b1")),
				toEach(kinds, "there", from("node-a").reaches("b1")), toEach(kinds, "empty", from("outside").rejected()))
		}},
		{"comes by the uplink", "eth0", func(*run) []probe {
			return slices.Concat(toEach(kinds, "here", from("outside").dropped()), toEach(kinds, "there", from("outside").dropped()),
				toEach(kinds, "empty", from("outside").dropped()),
				toEach(kinds, "here", from("a3").reaches("a1")), toEach(kinds, "here", from("a1").reaches("a1")), toEach(kinds, "here", from("node-a").reaches("a1")),
				[]probe{
					from("a3").to(clusterIP, "there").dropped(), from("node-a").to(clusterIP, "there").dropped(), from("b3").to(clusterIP, "there").reaches("b1"),
					from("b3").toNodePort("there", "node-b").reaches("b1"), from("a3").to(clusterIP, "empty").rejected(),
				})
		}},
	}
	var rows []neighbour
	for _, d := range devices {
		holds := func(r *run) []probe { return once(d.holds(r)) }
		rows = append(rows,
			neighbour{name: "a tc filter that drops what " + d.what + " wins, and harms nobody else", holds: holds, setUp: func(r *run, n *netlab.Node) {
				r.tcFilters(n, d.name, netlink.HANDLE_MIN_INGRESS, verdict(drop))
			}},
			neighbour{name: "a tc filter that redirects to another pod what " + d.what + " wins, and harms nobody else", holds: holds, setUp: func(r *run, n *netlab.Node) {
				r.tcFilters(n, d.name, netlink.HANDLE_MIN_INGRESS, r.redirectTo(n, netlab.PodInterfacePrefix+"2"))
			}},
		)
	}
	return rows
}

// podsOnBridge joins a node's pods by a bridge, as CNI's bridge plugin does: pods
// of one node answer each other without a way through the node, but for what
// br_netfilter shows it.
func podsOnBridge(r *run, n *netlab.Node) {
	before := r.shell(n, "[ -e /proc/sys/net/bridge ] || modprobe br_netfilter; cd /proc/sys/net/bridge; cat bridge-nf-call-iptables; ip link add cni0 type bridge; ip link set cni0 up; "+
		"for f in bridge-nf-call-iptables bridge-nf-call-ip6tables; do echo 1 >$f; done")
	r.Cleanup(func() {
		r.shell(n, "ip link del cni0; for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do echo "+strings.TrimSpace(before)+" >$f; done")
	})
	for i, pod := range n.Pods {
		device := fmt.Sprintf("%s%d", netlab.PodInterfacePrefix, i+1)
		hardware, err := pod.HardwareAddr("eth0")
		r.must(err)
		way := func(bridge string) {
			for f, a := range pod.Addrs {
				r.ip(n.Host, fmt.Sprintf("route replace %s dev %s src %s", a, bridge, n.Addrs[f]))
				r.ip(n.Host, fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", a, hardware, bridge))
			}
		}
		r.ip(n.Host, "link set "+device+" master cni0")
		r.ip(n.Host, "link set "+device+" type bridge_slave hairpin on") // kubelet wants it for pods that are their own endpoints
		way("cni0")
		for _, cidr := range n.PodCIDRs {
			r.ip(pod, fmt.Sprintf("route add %s dev eth0", cidr))
		}
		r.Cleanup(func() {
			for _, cidr := range n.PodCIDRs {
				r.ip(pod, fmt.Sprintf("route del %s dev eth0", cidr))
			}
			r.ip(n.Host, "link set "+device+" nomaster")
			way(device)
		})
	}
}

// redirect is the command of the bandwidth plugin of CNI.
func redirect(device, ifb string) string {
	return "tc filter add dev " + device + " parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev " + ifb
}

// tcOnAll puts tc filters with these verdicts on each side of each device.
func tcOnAll(verdicts ...int32) func(*run, *netlab.Node) {
	var programs []asm.Instructions
	for _, v := range verdicts {
		programs = append(programs, verdict(v))
	}
	return func(r *run, n *netlab.Node) {
		for _, device := range r.devices(n) {
			for _, side := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				r.tcFilters(n, device, side, programs...)
			}
		}
	}
}

// tcxOnAll attaches a tcx program with a verdict to each side of each device.
func tcxOnAll(code int32, anchor link.Anchor) func(*run, *netlab.Node) {
	return func(r *run, n *netlab.Node) {
		for _, device := range r.devices(n) {
			for _, side := range []bpf.AttachType{bpf.AttachTCXIngress, bpf.AttachTCXEgress} {
				if !r.tcx(n, device, side, code, anchor) {
					return
				}
			}
		}
	}
}

// devices are a node's devices by name.
func (r *run) devices(n *netlab.Node) []string {
	var names []string
	r.must(n.Do(func() error {
		all, err := net.Interfaces()
		for _, d := range all {
			names = append(names, d.Name)
		}
		return err
	}))
	return names
}

// verdict returns a program for tc that says the same of every packet.
func verdict(code int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, code), asm.Return()}
}

// redirectTo returns a program for tc that sends every packet out by a device of a node.
func (r *run) redirectTo(n *netlab.Node, device string) asm.Instructions {
	r.Helper()
	index := 0
	r.must(n.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err == nil {
			index = d.Index
		}
		return err
	}))
	return asm.Instructions{asm.Mov.Imm(asm.R1, int32(index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return()}
}

// tcProgram loads a program for tc.
func (r *run) tcProgram(code asm.Instructions) *bpf.Program {
	r.Helper()
	p, err := bpf.NewProgram(&bpf.ProgramSpec{Name: "neighbour", Type: bpf.SchedCLS, License: "GPL", Instructions: code})
	r.must(err)
	return p
}

// tcFilters puts filters on one side of a device, one after another, until the case ends.
func (r *run) tcFilters(n *netlab.Node, device string, side uint32, programs ...asm.Instructions) {
	r.Helper()
	r.must(n.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		err = netlink.QdiscAdd(qdisc)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err == nil {
			r.Cleanup(func() { r.must(n.Do(func() error { return netlink.QdiscDel(qdisc) })) })
		}
		for i, code := range programs {
			p := r.tcProgram(code)
			err := netlink.FilterAdd(&netlink.BpfFilter{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: d.Index, Parent: side, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: uint16(1 + i)},
				Fd:          p.FD(), Name: "neighbour", DirectAction: true,
			})
			if err := errors.Join(err, p.Close()); err != nil {
				return err
			}
		}
		return nil
	}))
}

// tcx attaches a program with a verdict until the case ends. It returns false
// where the kernel has no tcx.
func (r *run) tcx(n *netlab.Node, device string, side bpf.AttachType, code int32, anchor link.Anchor) bool {
	r.Helper()
	p := r.tcProgram(verdict(code))
	defer func() { _ = p.Close() }()
	var attached link.Link
	err := n.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		attached, err = link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: p, Attach: side, Anchor: anchor})
		return err
	})
	if errors.Is(err, bpf.ErrNotSupported) {
		r.notMeant("this kernel has no tcx")
		return false
	}
	r.must(err)
	r.Cleanup(func() { _ = attached.Close() })
	return true
}
