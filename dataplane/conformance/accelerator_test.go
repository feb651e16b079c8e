package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Sockets that are translated step aside for whoever wants to see a Service's
// address. Backends without sockets on top pass these cases as well.

func acceleratorCases() []testCase {
	return append([]testCase{
		{"sockets", "a mesh's redirect in a pod sees the Service's address: nftables", func(r *run) { meshed(r, nftMesh()) }},
		{"sockets", "a mesh's redirect in a pod sees the Service's address: legacy iptables", func(r *run) { meshed(r, legacyMesh()) }},
		{"sockets", "a pod whose rules are older than the agent's start is left alone from the start", meshedBefore},
		{"clause 5", "connections go on as sockets are translated on top of a backend, and as that ends", accelerated},
	}, overAnother()...)
}

// overAnother are cases about sockets, on top of another base than the eBPF column's.
func overAnother() []testCase {
	const base = otherBase
	cases := []testCase{
		{"sockets", "each way of a packet and each verdict", func(r *run) {
			r.sync(wideWorld())
			r.check(wide()...)
		}},
		{"clause 5", "connections go on as sockets are translated, and as that ends", accelerated},
	}
	for _, c := range socketCases() {
		if c.rule == "socket" {
			cases = append(cases, c)
		}
	}
	for i, c := range cases {
		cases[i].name += ": sockets on top of " + base
		cases[i].run = func(r *run) {
			if r.col.base == "" {
				r.notMeant("it is what sockets are on top of")
				return
			}
			r.onTopOf(base)
			c.run(r)
		}
	}
	return cases
}

// onTopOf has both nodes' sockets on top of another column's backend until the case ends.
func (r *run) onTopOf(base string) {
	r.Helper()
	change := func(to string) {
		for _, n := range r.lab.Nodes {
			r.must(r.agentOf(n.Name).cleanup())
		}
		r.base = to
		for _, n := range r.lab.Nodes {
			r.restart(n.Name)
		}
	}
	before := r.base
	r.Cleanup(func() { change(before) })
	change(base)
}

// mesh is how a pod redirects what it sends to the ClusterIPs.
type mesh struct{ begin, end string } // commands; the sidecar's port is 15001

const sidecarPort = 15001

func nftMesh() mesh {
	script := ""
	for table, to := range map[string]string{"ip": clusterIPs4, "ip6": clusterIPs6} {
		script += fmt.Sprintf("add table %s mesh; add chain %[1]s mesh out { type nat hook output priority -100; }; add rule %[1]s mesh out %[1]s daddr %s tcp dport 80 redirect to :%d; ", table, to, sidecarPort)
	}
	return mesh{"nft '" + script + "'", "nft 'delete table ip mesh; delete table ip6 mesh'"}
}

func legacyMesh() mesh {
	var m mesh
	for command, to := range map[string]string{"iptables-legacy": clusterIPs4, "ip6tables-legacy": clusterIPs6} {
		rule := fmt.Sprintf(" OUTPUT -p tcp -d %s --dport 80 -j REDIRECT --to-ports %d; ", to, sidecarPort)
		m.begin += command + " -t nat -A" + rule
		m.end += command + " -t nat -D" + rule
	}
	return m
}

// in runs a shell command on a host, which has an xtables lock of its own.
func (r *run) in(h *netlab.Host, command string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), netlab.Patient(20*time.Second))
	defer cancel()
	_, err := h.Run(ctx, "env", "XTABLES_LOCKFILE="+filepath.Join(r.locks, h.Name), "sh", "-ec", command)
	r.must(err)
}

// auto has the agent on node-a leave pods alone that translate their own
// connections.
func (r *run) auto() {
	r.Helper()
	at := r.site(r.node("node-a"))
	at.SocketLB = "auto"
	r.restartAt("node-a", at)
	r.Cleanup(func() { r.restart("node-a") })
}

// translated waits until the connections of pod a3 are translated at the socket,
// where that is what the backend does.
func (r *run) translated(p probe) {
	r.Helper()
	if !r.col.sockets {
		return
	}
	for deadline := time.Now().Add(netlab.Patient(8 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
		done := true
		for _, family := range families {
			a, err := r.host(p.client).Ask(r.request(p, dataplane.TCP, family))
			r.must(err)
			done = done && a.Outcome == netlab.Answered && a.Source.Addr() == r.host(p.client).Addr(int(family))
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			r.Fatal("the sockets of pod a3 are not translated, though nothing is in the way")
		}
	}
}

// originalDst listens for redirected connections on a host and tells where each
// was to go.
func (r *run) originalDst(h *netlab.Host) <-chan netip.AddrPort {
	r.Helper()
	seen := make(chan netip.AddrPort, 16)
	r.must(h.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", sidecarPort))
		if err != nil {
			return err
		}
		r.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				seen <- wanted(c.(*net.TCPConn))
				_ = c.Close()
			}
		}()
		return nil
	}))
	return seen
}

// wanted is SO_ORIGINAL_DST of a connection.
func wanted(c *net.TCPConn) (to netip.AddrPort) {
	const original = 80 // SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
	level := unix.SOL_IP
	if c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is6() {
		level = unix.SOL_IPV6
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return to
	}
	_ = raw.Control(func(fd uintptr) {
		var b [28]byte // struct sockaddr_in6
		size := uint32(len(b))
		if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), original, uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
			return
		}
		addr := netip.AddrFrom4([4]byte(b[4:8]))
		if level == unix.SOL_IPV6 {
			addr = netip.AddrFrom16([16]byte(b[8:24]))
		}
		to = netip.AddrPortFrom(addr, uint16(b[2])<<8|uint16(b[3]))
	})
	return to
}

// redirected sees that a3's connections come to its sidecar, which learns the
// Service's address.
func (r *run) redirected(p probe, seen <-chan netip.AddrPort) {
	r.Helper()
	for _, family := range families {
		req := r.request(p, dataplane.TCP, family)
		_, _ = r.host(p.client).Ask(req) // the sidecar ends the connection
		select {
		case got := <-seen:
			if got != req.To {
				r.Errorf("%s: the sidecar learns that %s was wanted; it was %s", family, got, req.To)
			}
		case <-time.After(answerTime):
			r.Errorf("%s: the connection to %s passes the sidecar by", family, req.To)
		}
	}
}

// meshed has a mesh take over a pod that was translated, and leave it again.
func meshed(r *run, m mesh) {
	r.auto()
	w := world{services: []service{serving("web", "b1")}}
	r.syncUnknown(w)
	a3, p := r.host("a3"), from("a3").to(clusterIP, "web").in(dataplane.TCP)
	r.translated(p)
	seen := r.originalDst(a3)
	for range 2 {
		r.in(a3, m.begin)
		time.Sleep(netlab.Patient(2500 * time.Millisecond)) // legacy tables are looked at every second
		r.redirected(p, seen)
		r.in(a3, m.end)
		r.translated(p)
	}
	r.check(p.reaches("b1"))
}

// meshedBefore starts an agent where a pod has a mesh, and was translated by an
// earlier agent.
func meshedBefore(r *run) {
	r.auto()
	w := world{services: []service{serving("web", "b1")}}
	r.syncUnknown(w)
	a3, p := r.host("a3"), from("a3").to(clusterIP, "web").in(dataplane.TCP)
	r.translated(p)
	seen := r.originalDst(a3)
	r.kill("node-a")
	r.in(a3, nftMesh().begin)
	defer r.in(a3, nftMesh().end)
	at := r.site(r.node("node-a"))
	at.SocketLB = "auto"
	r.restartAt("node-a", at)
	r.syncUnknown(w)
	time.Sleep(netlab.Patient(time.Second))
	r.redirected(p, seen)
	r.check(from("a4").to(clusterIP, "web").in(dataplane.TCP).reaches("b1"))
}

// accelerated puts sockets on top of a backend and takes them away again.
func accelerated(r *run) {
	if r.col.base == "" {
		r.notMeant("it is what sockets are on top of")
		return
	}
	w := world{services: []service{serving("web", "b1"), serving("here", "a1")}}
	both := []dataplane.Protocol{dataplane.TCP, dataplane.UDP}
	plain := r.site(r.node("node-a"))
	plain.SocketLB = "off"
	r.restartAt("node-a", plain)
	r.syncUnknown(w)
	held := r.holdEverywhere(both...)
	loads := r.loadEverywhere()
	for range 3 {
		r.restart("node-a")
		r.syncUnknown(w)
		held = append(held, r.holdEverywhere(both...)...)
		r.check(works("web", "b1")...)
		r.restartAt("node-a", plain)
		r.syncUnknown(w)
		held = append(held, r.holdEverywhere(both...)...)
	}
	r.stopAll(loads)
	r.stopAll(held)
	r.restart("node-a")
}
