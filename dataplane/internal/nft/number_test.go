package nft

import (
	"net"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// inNetns runs a test in a network namespace of its own.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	kerneltest.NeedRoot(t)
	if err := netns.InScratch(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestEndpointNumber: the kernel's jhash gives an endpoint the number that we give it.
func TestEndpointNumber(t *testing.T) {
	inNetns(t, func() {
		for _, endpoint := range []string{"10.244.0.5:8080", "192.0.2.255:65535", "[fd00:10:244::5]:8080", "[2001:db8::]:1"} {
			a := netip.MustParseAddrPort(endpoint)
			if got := kernelNumber(t, a); got != EndpointNumber(a) {
				t.Errorf("%s: the kernel says %d, we say %d", a, got, EndpointNumber(a))
			}
		}
	})
}

// kernelNumber has the kernel hash an endpoint: a packet that the node sends
// itself passes a rule that notes the hash of constant data.
func kernelNumber(t *testing.T, a netip.AddrPort) uint32 {
	t.Helper()
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "hash"})
	c.DelTable(table)
	c.AddTable(table)
	set := &nftables.Set{Table: table, Name: "seen", KeyType: nftables.TypeMark, Dynamic: true, Size: 8}
	if err := c.AddSet(set, nil); err != nil {
		t.Fatal(err)
	}
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	rule := Rule{}
	data := []byte(EndpointBytes(a))
	for i := 0; i < len(data); i += 4 {
		rule = append(rule, &expr.Immediate{Register: Reg(i / 4), Data: data[i : i+4]})
	}
	rule = append(rule,
		&expr.Hash{SourceRegister: Reg(0), DestRegister: Reg(8), Length: uint32(len(data)), Modulus: NumberModulus, Seed: NumberSeed, Type: expr.HashTypeJenkins},
		&expr.Dynset{SrcRegKey: Reg(8), SetName: "seen"})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("x")) // nobody listens
	_ = conn.Close()
	elements, err := c.GetSetElements(set)
	if err != nil || len(elements) != 1 {
		t.Fatalf("the rule noted %d numbers, %v", len(elements), err)
	}
	return NumberOf(string(elements[0].Key))
}
