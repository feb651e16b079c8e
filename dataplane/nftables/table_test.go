package nftables

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// missing fails where continuous integration has all that is needed, and skips elsewhere.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_KERNEL") == "1" {
		t.Fatalf("REQUIRE_KERNEL=1: %s", what)
	}
	t.Skip(what)
}

// inNetns runs a test in a network namespace of its own.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	if unix.Geteuid() != 0 {
		missing(t, "not root")
		return
	}
	if err := netns.InScratch(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestRules: the kernel takes our rules, nft can print them, and what is read
// back is what was written.
func TestRules(t *testing.T) {
	inNetns(t, func() {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			if err := tryTable(f); err != nil {
				t.Error(err)
				return
			}
			table := nft.NewTable(f, spec(f), &nft.Counts{})
			state, err := table.Read()
			if err != nil {
				t.Error(err)
				return
			}
			_ = table.Close()
			if !state.Whole || len(state.Chains) < 25 || len(state.Elements) < 20 {
				t.Errorf("%s: read back whole %t, %d chains, elements %v", f, state.Whole, len(state.Chains), state.Elements)
			}
		}
		if _, err := exec.LookPath("nft"); err != nil {
			missing(t, err.Error())
			return
		}
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Errorf("nft cannot list our tables: %v\n%s", err, out)
			return
		}
		for _, rule := range []string{
			"meta priority set ip daddr . meta l4proto . th dport map @frontends",
			"meta priority vmap @ways",
			"update @affinity { meta priority . ip6 saddr timeout 1s : jhash ip6 daddr . th dport mod 4294967295 seed 0x53594144 }",
		} {
			if !strings.Contains(string(out), rule) {
				t.Errorf("nft does not list %q in\n%s", rule, out)
			}
		}
	})
}
