package iptables

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// refusesPorts9999 is a restore that refuses endpoints of port 9999 and names only the
// COMMIT line, as legacy does. It starts few processes, as it is for many tries.
const refusesPorts9999 = `in=$(cat)
case $in in *:9999*) echo "iptables-restore: line 100000 failed" >&2; exit 1; esac
printf '%s\n' "$in" | PATH=${PATH#*:} ${0##*/} "$@"`

// TestManyRefused: whatever number of ServicePorts is refused, the others are served
// after the first Sync where the tries suffice, and after a few of them where not.
func TestManyRefused(t *testing.T) {
	for _, c := range []struct {
		name     string
		n        int
		bad      func(i int) bool
		limits   limits
		syncs    int
		variants []restore.Variant
	}{
		{"all but the first", 1101, func(i int) bool { return i != 0 }, limits{mostTries, time.Hour}, 1, []restore.Variant{restore.Legacy}},
		{"each other one", 1101, func(i int) bool { return i%2 == 0 }, limits{mostTries, time.Hour}, 1, []restore.Variant{restore.Legacy}},
		{"more than the tries", 101, func(i int) bool { return i != 0 && i != 50 && i != 99 }, limits{30, time.Hour}, 5, []restore.Variant{restore.NFT, restore.Legacy}},
		{"no time", 9, func(i int) bool { return i%2 == 0 }, limits{mostTries, 0}, 9, []restore.Variant{restore.Legacy}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range c.variants {
				t.Run(string(v), func(t *testing.T) {
					inNetns(t, func() { syncManyRefused(t, v, c.n, c.bad, c.limits, c.syncs) })
				})
			}
		})
	}
}

func syncManyRefused(t *testing.T, v restore.Variant, n int, bad func(int) bool, most limits, syncs int) {
	k := newKernel(t, v)
	b := k.open()
	for _, f := range b.families {
		f.limits = most
	}
	k.becomes("iptables", "-restore", refusesPorts9999)
	var ports []*dataplane.ServicePort
	isBad := map[dataplane.PortID]bool{}
	for i := range n {
		p := service(dataplane.IPv4, i, 1)
		if bad(i) {
			isBad[p.ID] = true
			p.Frontends[0].Pool = pool(endpoint(fmt.Sprintf("10.128.%d.%d:9999", i>>8, i&0xff), false))
		}
		ports = append(ports, p)
	}
	want := snapshot(ports...)
	var prev *dataplane.Snapshot
	for sync := 1; ; sync++ {
		var partial *dataplane.PartialError
		if err := b.Sync(context.Background(), prev, want); !errors.As(err, &partial) {
			t.Fatalf("Sync %d: %.500v; want refusals", sync, err)
		}
		held := *want
		untried := 0
		for _, f := range partial.Failed {
			held.Ports = held.Ports.With(nil, []dataplane.PortID{f.ID})
			if errors.Is(f.Err, errUntried) {
				untried++
			} else if !isBad[f.ID] {
				t.Errorf("Sync %d refuses %s: %v", sync, f.ID, f.Err)
			}
		}
		k.mustHold(b, &held)
		prev = &held
		if untried == 0 {
			if len(partial.Failed) != len(isBad) || sync != syncs {
				t.Errorf("after Sync %d, %d are refused; want %d after %d", sync, len(partial.Failed), len(isBad), syncs)
			}
			return
		}
		if sync == syncs {
			t.Fatalf("after Sync %d, %d are not tried yet", sync, untried)
		}
	}
}

// TestSearch: how many tries a search takes.
func TestSearch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name      string
		n         int
		bad       func(i int) bool
		lines     bool // the error names the line of the first one at fault
		most      int
		undecided bool // as the most tries do not suffice
	}{
		{"none", 10000, func(int) bool { return false }, false, 40, false},
		{"one", 10000, func(i int) bool { return i == 4321 }, false, 70, false},
		{"one, named", 10000, func(i int) bool { return i == 4321 }, true, 41, false},
		{"all", 1200, func(int) bool { return true }, false, 1210, false},
		{"all, named", 1200, func(int) bool { return true }, true, 1200, false},
		{"all, and few tries", 1200, func(int) bool { return true }, false, 100, true},
		{"each second", 1200, func(i int) bool { return i%2 == 0 }, false, 2000, false},
		{"each third", 1200, func(i int) bool { return i%3 == 0 }, false, 2000, false},
		{"each fourth", 1200, func(i int) bool { return i%4 == 0 }, false, 2000, false},
		{"each fifth", 1200, func(i int) bool { return i%5 == 0 }, false, 2000, false},
		{"each eighth", 1200, func(i int) bool { return i%8 == 0 }, false, 2000, false},
		{"many, anywhere", 1200, func(int) bool { return random.IntN(10) < 7 }, false, 2000, false},
		{"half, anywhere", 1200, func(int) bool { return random.IntN(2) < 1 }, false, 2000, false},
		{"some, anywhere", 1200, func(int) bool { return random.IntN(10) < 3 }, false, 2000, false},
	} {
		isBad := map[dataplane.PortID]bool{}
		var all []trial
		for i := range c.n {
			p := trial{id: dataplane.PortID{Service: fmt.Sprint(i)}, first: i, last: i}
			all = append(all, p)
			isBad[p.id] = c.bad(i)
		}
		tries := 0
		s := search{limits: limits{c.most, time.Hour}, bad: refused{}, refuses: func(group []trial) (*restore.Refusal, error) {
			tries++
			at := slices.IndexFunc(group, func(p trial) bool { return isBad[p.id] })
			switch {
			case at < 0:
				return nil, nil
			case c.lines:
				return &restore.Refusal{Lines: []int{group[at].first}}, nil
			}
			return &restore.Refusal{}, nil
		}}
		undecided, err := s.run(all)
		if err != nil || len(undecided) > 0 != c.undecided {
			t.Errorf("%s: %d are undecided after %d tries: %v", c.name, len(undecided), tries, err)
		}
		for _, p := range all[:len(all)-len(undecided)] {
			if _, bad := s.bad[p.id]; bad != isBad[p.id] {
				t.Errorf("%s: %s is found refused: %t", c.name, p.id, bad)
			}
		}
		t.Logf("%s: %d tries", c.name, tries)
	}
}
