package iptables

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// unreadable says what keeps iptables-nft-save from listing tables.
var unreadable = map[string]struct {
	on, off string // commands of nft
	fails   bool   // iptables-nft-save itself
	remark  bool   // it only says that others have base chains, too
}{
	"native base chains alongside": {
		on:     "table FAMILY nat { chain own { type nat hook postrouting priority 100; }; }; table FAMILY filter { chain own { type filter hook forward priority 5; }; }",
		off:    "delete chain FAMILY nat own; delete chain FAMILY filter own",
		remark: true,
	},
	"a native rule in nat": {
		on:  "add rule FAMILY nat PREROUTING meta mark set ct mark",
		off: "flush chain FAMILY nat PREROUTING",
	},
	"a native rule in filter": {
		on:  "add rule FAMILY filter INPUT meta mark set ct mark",
		off: "flush chain FAMILY filter INPUT",
	},
	"a native rule in a chain of somebody else's": {
		on:  "add chain FAMILY nat other; add rule FAMILY nat other meta mark set ct mark; add rule FAMILY filter FORWARD meta mark set ct mark",
		off: "delete chain FAMILY nat other; flush chain FAMILY filter FORWARD",
	},
	"iptables-nft-save that fails": {fails: true},
}

// withUnreadable runs a test for each of them and each family.
func withUnreadable(t *testing.T, do func(t *testing.T, k *kernel, name string, on, off func())) {
	for name := range unreadable {
		for _, family := range []string{"ip", "ip6"} {
			t.Run(strings.ReplaceAll(name, " ", "_")+"/"+family, func(t *testing.T) {
				if _, err := exec.LookPath("nft"); err != nil {
					missing(t, err.Error())
				}
				inNetns(t, func() {
					k := newKernel(t, restore.NFT)
					for _, p := range []string{"iptables", "ip6tables"} { // makes the built-in chains
						for _, at := range []string{"nat -A PREROUTING", "nat -A OUTPUT", "filter -A INPUT", "filter -A FORWARD"} {
							k.do(p + " -t " + at + " -p tcp --dport 7 -j RETURN")
						}
					}
					on, off := k.unreadable(name, family)
					do(t, k, name, on, off)
				})
			})
		}
	}
}

// unreadable returns what keeps one family's tables from being listed, and what
// ends that.
func (k *kernel) unreadable(name, family string) (on, off func()) {
	what := unreadable[name]
	if what.fails {
		save := filepath.Join(k.dir, map[string]string{"ip": "iptables", "ip6": "ip6tables"}[family]+"-nft-save")
		return func() {
				k.must(os.Rename(save, save+".real"))
				k.must(os.WriteFile(save, []byte("#!/bin/sh\necho '*nat'\necho broken >&2\nexit 1\n"), 0o755))
			}, func() {
				k.must(os.Rename(save+".real", save))
			}
	}
	nft := func(commands string) func() {
		return func() {
			k.t.Helper()
			if out, err := exec.Command("nft", strings.ReplaceAll(commands, "FAMILY", family)).CombinedOutput(); err != nil {
				k.t.Fatalf("nft %s: %v: %s", commands, err, out)
			}
		}
	}
	return nft(what.on), nft(what.off)
}

func (k *kernel) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// ours are the lines of a dump that have to do with us.
func ours(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if strings.Contains(line, ownPrefix) || strings.Contains(line, "SY-") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestUnreadableTables demands that not being able to read stops no writing: the
// rules are those that a Sync writes where everything can be read.
func TestUnreadableTables(t *testing.T) {
	withUnreadable(t, func(t *testing.T, k *kernel, name string, on, off func()) {
		first, second := mixed(), mixed()
		second.Ports = second.Ports.With(services(5, 2), nil)
		fresh := k.open()
		k.mustSync(fresh, nil, second)
		want := ours(k.dump())
		k.must(cleanup(t.Context(), Options{LockDir: lockDir()}, config(t)))

		on()
		b := k.open()
		k.mustSync(b, nil, first)
		k.mustSync(b, first, second)
		k.mustHold(b, second)
		k.runs()
		k.mustSync(b, nil, second)
		if n := k.restores(); n > 0 {
			t.Errorf("an audit where nothing is missing wrote %d times", n)
		}
		o, err := b.Observe(t.Context())
		if err != nil || o.Whole != unreadable[name].remark {
			t.Errorf("Observe says that it saw all: %v, %v", o.Whole, err)
		}
		off()
		if got := ours(k.dump()); got != want && !strings.Contains(unreadable[name].off, "flush") {
			t.Errorf("rules are\n%s\nwant\n%s", got, want)
		}
		if strings.Contains(unreadable[name].off, "flush") { // it took a jump of ours
			on()
			k.mustSync(b, nil, second)
			off()
		}
		k.mustSync(b, nil, second)
		if got := ours(k.dump()); got != want {
			t.Errorf("after the repair rules are\n%s\nwant\n%s", got, want)
		}
	})
}

// TestUnreadableRepair demands that missing jumps and chains are found, and
// nothing is written twice.
func TestUnreadableRepair(t *testing.T) {
	withUnreadable(t, func(t *testing.T, k *kernel, _ string, on, off func()) {
		want := mixed()
		b := k.open()
		k.mustSync(b, nil, want)
		whole := ours(k.dump())
		for _, damage := range []string{
			"iptables -t nat -D PREROUTING 1", "ip6tables -t nat -D OUTPUT 1", "iptables -D FORWARD 1", "ip6tables -D INPUT 1",
			"iptables -t nat -A POSTROUTING -j " + chainPostrouting, "ip6tables -t nat -A POSTROUTING -m comment --comment old -j " + chainPostrouting,
			"iptables -t nat -N SY-P-LEFT-BEHIND", "ip6tables -N SWITCHYARD-OLD",
		} {
			k.do(damage)
		}
		on()
		o, err := b.Observe(t.Context())
		k.must(err)
		if n := len(o.Other); n < 8 {
			t.Errorf("Observe tells of %d faults, want 8 at least: %q", n, o.Other)
		}
		k.mustSync(k.open(), nil, want) // knows nothing
		off()
		k.mustSync(b, nil, want)
		if got := ours(k.dump()); got != whole {
			t.Errorf("rules are\n%s\nwant\n%s", got, whole)
		}
	})
}

// TestUnreadableCleanup demands that cleanup removes all that is ours, and
// RemoveChains what it is asked to.
func TestUnreadableCleanup(t *testing.T) {
	withUnreadable(t, func(t *testing.T, k *kernel, _ string, on, off func()) {
		for _, p := range []string{"iptables", "ip6tables"} {
			k.do(p + " -t nat -N THEIRS-A")
			k.do(p + " -t nat -N THEIRS-B")
			k.do(p + " -t nat -N OTHER")
			k.do(p + " -t nat -A PREROUTING -m comment --comment portals -p tcp --dport 9 -j THEIRS-A")
			k.do(p + " -t nat -A OTHER -j THEIRS-B")
			k.do(p + " -t mangle -N THEIRS-C")
			k.do(p + " -t mangle -A FORWARD -j THEIRS-C")
		}
		k.mustSync(k.open(), nil, mixed())
		on()
		k.must(cleanup(t.Context(), Options{LockDir: lockDir()}, config(t)))
		k.must(RemoveChains(t.Context(), config(t).Log, func(chain string) bool { return strings.HasPrefix(chain, "THEIRS-") }))
		off()
		dump := k.dump()
		if left := ours(dump); left != "" {
			t.Errorf("cleanup leaves\n%s", left)
		}
		if strings.Contains(dump, "THEIRS-A") || strings.Contains(dump, "THEIRS-C") || strings.Count(dump, "-j THEIRS-B") != 2 {
			t.Errorf("RemoveChains leaves\n%s", dump)
		}
		if on, err := localnet.IsOn(); on || err != nil {
			t.Errorf("route_localnet is still on: %v, %v", on, err)
		}
	})
}
