package ipvs

import (
	"os/exec"
	"strings"
	"testing"

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
			state, err := newTable(f, &counts{}).Read()
			if err != nil {
				t.Fatal(err)
			}
			if !state.Whole() || len(state.Chains) < 20 || len(state.Elements) != 4 {
				t.Errorf("%s: read back whole %t, %d chains, elements %v", f, state.Whole(), len(state.Chains), state.Elements)
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
