package iptables

import (
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// TestDisturbed: what others do to our rules is noticed within 2 s, or with
// legacy by the next look. What we write and what others do to theirs is not.
func TestDisturbed(t *testing.T) {
	both := []dataplane.Family{dataplane.IPv4, dataplane.IPv6}
	for _, c := range []struct {
		does    string
		variant restore.Variant
		want    bool
	}{
		{"iptables-nft -t nat -F", restore.NFT, true},
		{"nft flush ruleset", restore.NFT, true},
		{"nft delete table ip6 filter", restore.NFT, true},
		{"iptables-nft -t nat -D PREROUTING 1", restore.NFT, true},
		{"ip6tables-nft -t filter -D FORWARD 1", restore.NFT, true},
		{"iptables-nft -t nat -F SWITCHYARD-SERVICES", restore.NFT, true},
		{"iptables-nft -t nat -N CNI-HOSTPORT", restore.NFT, false},
		{"iptables-nft -t nat -A POSTROUTING -j ACCEPT", restore.NFT, false},
		{"nft add table inet theirs", restore.NFT, false},
		{"nft delete table inet theirs", restore.NFT, false},
		{"iptables-legacy -t nat -F", restore.Legacy, true},
		{"ip6tables-legacy -t filter -D FORWARD 1", restore.Legacy, true},
		{"iptables-legacy -t nat -N CNI-HOSTPORT", restore.Legacy, false},
		{"iptables-legacy -t nat -A POSTROUTING -j ACCEPT", restore.Legacy, false},
	} {
		t.Run(c.does, func(t *testing.T) {
			if _, err := restore.Find(t.Context(), c.variant, dataplane.IPv4, 1); err != nil {
				missing(t, err.Error())
			}
			inNetns(t, func() {
				b, err := open(t.Context(), Options{Mode: string(c.variant), LockDir: lockDir()}, dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: both, MasqueradeBit: 14})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = b.Close() }()
				a, z := mixed(), snapshot()
				for _, s := range [][2]*dataplane.Snapshot{{nil, a}, {a, z}, {z, a}, {nil, a}} {
					if err := b.Sync(t.Context(), s[0], s[1]); err != nil {
						t.Fatal(err)
					}
				}
				if c.does == "nft delete table inet theirs" {
					mustRun(t, "nft add table inet theirs")
				}
				if told(b, 500*time.Millisecond) {
					t.Error("what we wrote ourselves disturbs us")
				}
				mustRun(t, c.does)
				within := 2 * time.Second
				if c.variant == restore.Legacy {
					within = 2*pollPause + time.Second
				}
				if got := told(b, within); got != c.want {
					t.Errorf("noticed: %v, want %v", got, c.want)
				}
			})
		})
	}
}

// TestDisturbedOverflow: what others do is noticed also where the kernel has more
// to say than waits for the watch. nft's list of rules is one transaction.
func TestDisturbedOverflow(t *testing.T) {
	inNetns(t, func() {
		b, err := open(t.Context(), Options{Mode: string(restore.NFT), LockDir: lockDir()}, dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4}, MasqueradeBit: 14})
		if errors.Is(err, dataplane.ErrUnsupported) {
			missing(t, err.Error())
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		if err := b.Sync(t.Context(), nil, snapshot()); err != nil {
			t.Fatal(err)
		}
		if told(b, 500*time.Millisecond) {
			t.Error("what we wrote ourselves disturbs us")
		}
		if err := b.watch.follower.SetBuffer(1); err != nil {
			t.Fatal(err)
		}
		var rules strings.Builder
		rules.WriteString("add table ip theirs\n")
		for i := range 500 {
			fmt.Fprintf(&rules, "add chain ip theirs chain%d\n", i)
		}
		rules.WriteString("flush chain ip nat SWITCHYARD-SERVICES\n")
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		if !told(b, 10*time.Second) {
			t.Error("nothing was noticed")
		}
		found, err := b.Observe(t.Context())
		if err != nil || len(found.Other) == 0 {
			t.Errorf("the rules that are gone are not observed: %v, %v", found, err)
		}
	})
}

// told reports whether a disturbance is told of within some time.
func told(b *backend, within time.Duration) bool {
	select {
	case <-b.Disturbed():
		return true
	case <-time.After(within):
		return false
	}
}

func mustRun(t *testing.T, command string) {
	t.Helper()
	args := strings.Fields(command)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}
