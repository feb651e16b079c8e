package ipvs

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestRules: the kernel takes our rules, nft can print them, and what is read
// back is what was written.
func TestRules(t *testing.T) {
	inNetns(t, func() {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			if err := tryTable(f); err != nil {
				t.Fatal(err)
			}
			state, err := newTable(f, &counts{}).read()
			if err != nil {
				t.Fatal(err)
			}
			if !state.whole || len(state.chains) < 20 || len(state.elements) != 4 {
				t.Errorf("%s: read back whole %t, %d chains, elements %v", f, state.whole, len(state.chains), state.elements)
			}
		}
		if _, err := exec.LookPath("nft"); err != nil {
			missing(t, err.Error())
			return
		}
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("nft cannot list our tables: %v\n%s", err, out)
		}
		for _, rule := range []string{
			"ip daddr . meta l4proto . th dport @plain-masq-nonpod goto masq-nonpod",
			"update @affinity { meta priority . ip6 saddr timeout 10s : jhash ip6 daddr . th dport mod 4294967295 seed 0x53594144 }",
		} {
			if !strings.Contains(string(out), rule) {
				t.Errorf("nft does not list %q", rule)
			}
		}
	})
}

// TestEndpointNumber: the kernel's jhash gives an endpoint the number that we give it.
func TestEndpointNumber(t *testing.T) {
	inNetns(t, func() {
		for _, endpoint := range []string{"10.244.0.5:8080", "192.0.2.255:65535", "[fd00:10:244::5]:8080", "[2001:db8::]:1"} {
			a := netip.MustParseAddrPort(endpoint)
			if got := kernelNumber(t, a); got != endpointNumber(a) {
				t.Errorf("%s: the kernel says %d, we say %d", a, got, endpointNumber(a))
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
	rule := code{}
	data := []byte(endpointBytes(a))
	for i := 0; i < len(data); i += 4 {
		rule = append(rule, &expr.Immediate{Register: reg(i / 4), Data: data[i : i+4]})
	}
	rule = append(rule,
		&expr.Hash{SourceRegister: reg(0), DestRegister: reg(8), Length: uint32(len(data)), Modulus: numberModulus, Seed: numberSeed, Type: expr.HashTypeJenkins},
		&expr.Dynset{SrcRegKey: reg(8), SetName: "seen"})
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
	return native(elements[0].Key)
}
