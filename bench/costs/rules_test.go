package costs

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

func TestMain(m *testing.M) {
	netlab.Main(Roles())
	os.Exit(m.Run())
}

// TestWalked: rules before the one that matched were tried, and so was the rest of
// a chain that ended, whether or not the kernel reports its end.
func TestWalked(t *testing.T) {
	in := func(chain string) chainName { return chainName{2, "t", chain} }
	rules := map[chainName][]uint64{in("base"): {1, 2, 3}, in("side"): {4, 5}, in("other"): {6}, {2, tracedTable, "base"}: {7, 8}}
	matched := func(chain string, handle uint64, code int32, to string) step {
		return step{at: in(chain), kind: 3, handle: handle, code: code, to: to}
	}
	ended := func(chain string) step { return step{at: in(chain), kind: 3, code: -1} }
	policy := func(chain string) step { return step{at: in(chain), kind: stepPolicy} }
	for _, tc := range []struct {
		what  string
		steps []step
		tried int
	}{
		{"nothing matches", []step{ended("base"), policy("base")}, 3},
		{"nothing matches, on a kernel that reports no end", []step{policy("base")}, 3},
		{"accepted by the second", []step{matched("base", 2, 1, "")}, 2},
		{"there and back", []step{matched("base", 1, verdictJump, "side"), ended("side"), ended("base"), policy("base")}, 5},
		{"there and back, unreported", []step{matched("base", 1, verdictJump, "side"), policy("base")}, 5},
		{"there and back, and on", []step{matched("base", 1, verdictJump, "side"), matched("base", 3, 1, "")}, 5},
		{"sent back", []step{matched("base", 1, verdictJump, "side"), matched("side", 4, verdictReturn, ""), policy("base")}, 4},
		{"gone to another", []step{matched("base", 2, verdictGoto, "other"), matched("other", 6, 1, "")}, 3},
		{"gone to another from a jump", []step{matched("base", 1, verdictJump, "side"), matched("side", 4, verdictGoto, "other"), ended("other"), matched("base", 2, 0, "")}, 4},
		{"two hooks", []step{matched("base", 1, 1, ""), policy("other")}, 2},
		{"the bench's own", []step{{at: chainName{2, tracedTable, "base"}, kind: stepPolicy}}, 0},
	} {
		t.Run(tc.what, func(t *testing.T) {
			if got, err := walked(tc.steps, rules); err != nil || got != tc.tried {
				t.Errorf("%d rules, %v; want %d", got, err, tc.tried)
			}
		})
	}
	if _, err := walked([]step{matched("base", 9, 1, "")}, rules); err == nil {
		t.Error("a rule that the chain does not have is no error")
	}
}

// answers is how many rules of the set below have no counter. They are tried on each
// packet, and let answers through.
const answers = 2

// counting is a rule set whose rules begin with a counter: there the kernel itself
// counts what it tries.
const counting = `add table ip t
add chain ip t pre { type filter hook prerouting priority -150; }
add chain ip t onward { type filter hook forward priority 0; }
add chain ip t side
add chain ip t more
add chain ip t last
add map ip t ways { type inet_service : verdict; elements = { 8080 : jump more } }
add rule ip t pre udp sport 8080 accept
add rule ip t pre counter meta l4proto tcp accept
add rule ip t pre counter udp dport 8080 jump side
add rule ip t pre counter meta l4proto tcp accept
add rule ip t side counter udp dport 1 return
add rule ip t side counter udp dport vmap @ways
add rule ip t side counter return
add rule ip t side counter drop
add rule ip t more counter udp dport 1 drop
add rule ip t more counter goto last
add rule ip t more counter drop
add rule ip t last counter meta mark set 0
add rule ip t last counter udp dport 1 drop
add rule ip t onward udp sport 8080 accept
add rule ip t onward counter udp dport 1 drop
add rule ip t onward counter udp dport 8080 accept
add rule ip t onward counter drop`

// TestTried: what is counted by the kernel's trace is what the rules count themselves.
func TestTried(t *testing.T) {
	kerneltest.NeedRoot(t)
	lab, err := netlab.New(t.Context(), netlab.Config{Nodes: 1, Pods: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lab.Close() })
	node := lab.Nodes[0]
	if _, err := node.Pods[1].Serve(netlab.UDP, servedPort); err != nil {
		t.Fatal(err)
	}
	c := &counted{bench: &bench{lab: lab, node: node, set: &Set{}}, ctx: t.Context(), name: nameNFTables}
	var tried int
	if err := c.tracing(func() (err error) {
		if _, err := node.Run(t.Context(), "nft", strings.ReplaceAll(counting, "\n", "; ")); err != nil {
			return err
		}
		packets := c.packets()
		tried, err = c.tried(packets[len(packets)-1])
		return err
	}); err != nil {
		t.Fatal(err)
	}
	counted, err := counters(t.Context(), node.Host)
	if err != nil {
		t.Fatal(err)
	}
	if counted == 0 || tried != counted+answers {
		t.Errorf("the trace says that %d rules were tried; %d counted themselves, and %d let answers through", tried, counted, answers)
	}
}

// counters adds up the counters of table t.
func counters(ctx context.Context, h *netlab.Host) (int, error) {
	out, err := h.Run(ctx, "nft", "-j", "list", "table", "ip", "t")
	if err != nil {
		return 0, err
	}
	var listed struct {
		Nftables []struct {
			Rule *struct {
				Expr []struct{ Counter *struct{ Packets int } }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &listed); err != nil {
		return 0, err
	}
	sum := 0
	for _, o := range listed.Nftables {
		if o.Rule != nil && o.Rule.Expr[0].Counter != nil {
			sum += o.Rule.Expr[0].Counter.Packets
		}
	}
	return sum, nil
}
