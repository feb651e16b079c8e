package conntrack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// enterNetns puts the rest of the test into a network namespace of its own.
func enterNetns(t *testing.T) {
	t.Helper()
	kerneltest.OwnNetns(t)
	kerneltest.LoopbackUp(t)
}

// run runs a command in the test's network namespace.
func run(t *testing.T, words ...string) {
	t.Helper()
	if _, err := exec.LookPath(words[0]); err != nil {
		kerneltest.Unable(t, "needs the command "+words[0])
	}
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
}

// entry is a conntrack entry of a test: a client's flow to dst that reply
// answers. Equal addresses: no NAT.
type entry struct {
	protocol   dataplane.Protocol
	dst, reply netip.AddrPort
}

// insert puts an entry into the kernel's table, from client number n (1 to 255).
func (e entry) insert(t *testing.T, n byte) {
	t.Helper()
	e.insertIn(t, n, nl.TCP_CONNTRACK_ESTABLISHED)
}

// insertIn does so in a state of TCP.
func (e entry) insertIn(t *testing.T, n, state byte) {
	t.Helper()
	family := dataplane.FamilyOf(e.dst.Addr())
	const port = 40000
	src, proto := client(family, n), uint8(e.protocol)
	f := &netlink.ConntrackFlow{
		FamilyType: uint8(nlFamily(family)),
		Forward:    netlink.IPTuple{Protocol: proto, SrcIP: src, SrcPort: port, DstIP: e.dst.Addr().AsSlice(), DstPort: e.dst.Port()},
		Reverse:    netlink.IPTuple{Protocol: proto, SrcIP: e.reply.Addr().AsSlice(), SrcPort: e.reply.Port(), DstIP: src, DstPort: port},
		TimeOut:    600,
	}
	if e.protocol == dataplane.TCP {
		f.ProtoInfo = &netlink.ProtoInfoTCP{State: state}
	}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, nlFamily(family), f); err != nil {
		if os.IsPermission(err) || errors.Is(err, unix.EOPNOTSUPP) {
			kerneltest.Unable(t, "conntrack over netlink: "+err.Error())
		}
		t.Fatalf("inserting a conntrack entry to %s: %v", e.dst, err)
	}
}

// clients gives the numbers of the clients that have an entry in the kernel's table.
func clients(t *testing.T, family dataplane.Family) map[byte]bool {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, nlFamily(family))
	if err != nil {
		t.Fatalf("listing the conntrack table: %v", err)
	}
	numbers := map[byte]bool{}
	for _, f := range flows {
		numbers[f.Forward.SrcIP[len(f.Forward.SrcIP)-1]] = true
	}
	return numbers
}

func client(family dataplane.Family, n byte) net.IP {
	if family == dataplane.IPv4 {
		return net.IP{192, 0, 2, n}
	}
	ip := net.ParseIP("2001:db8::")
	ip[15] = n
	return ip
}

func nlFamily(f dataplane.Family) netlink.InetFamily {
	if f == dataplane.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
