package conformance

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// driftCases are about what happens to our state behind our back.
func driftCases() []testCase {
	return []testCase{{"Observe", "any rule, entry or program that somebody removes is found, and put back by a repair", func(r *run) {
		const removals = 24
		r.cleared()
		random := rand.New(rand.NewPCG(11, uint64(len(r.col.name)))) // always the same
		w := randomWorld(random)
		w.services = append(w.services, serving("web", "a1 b1"))
		r.sync(w)
		node, agent := r.node("node-a"), r.agentOf("node-a")
		for range removals {
			var removed string
			if r.col.remove != nil {
				removed = r.col.remove(r, node, random)
			} else {
				damage := r.col.damage[random.IntN(len(r.col.damage))]
				damage.do(r, node)
				removed = damage.name
			}
			have, err := agent.observe()
			r.must(err)
			if len(have.Differences(dataplane.Expect(w.snapshot(r, node)))) == 0 {
				r.Errorf("Observe does not find what was removed: %s", removed)
			}
			r.syncUnknown(w) // and sees that there is no difference any more
			if r.Failed() {
				r.Fatalf("after the removal of %s", removed)
			}
		}
		r.check(works("web", "a1 b1")...)
	}}}
}

// removeRule removes a random rule of ours, in our chains or leading to them.
func removeRule(mode string) func(*run, *netlab.Node, *rand.Rand) string {
	return func(r *run, n *netlab.Node, random *rand.Rand) string {
		command := []string{"iptables-", "ip6tables-"}[random.IntN(2)] + mode
		table := []string{"nat", "filter"}[random.IntN(2)]
		type rule struct {
			chain  string
			number int
			text   string
		}
		var ours []rule
		count := map[string]int{}
		for line := range strings.Lines(r.shell(n, command+"-save -t "+table)) {
			rest, is := strings.CutPrefix(line, "-A ")
			if !is {
				continue
			}
			chain, _, _ := strings.Cut(rest, " ")
			count[chain]++
			if strings.Contains(line, "SWITCHYARD-") || strings.HasPrefix(chain, "SY-") {
				ours = append(ours, rule{chain, count[chain], strings.TrimSpace(line)})
			}
		}
		chosen := ours[random.IntN(len(ours))]
		r.shell(n, fmt.Sprintf("%s -t %s -D %s %d", command, table, chosen.chain, chosen.number))
		return command + " -t " + table + " " + chosen.text
	}
}

// removeEntry removes a random entry of a map that says what to forward, or
// detaches a random program.
func removeEntry(r *run, n *netlab.Node, random *rand.Rand) string {
	maps := []string{"frontends", "slots", "services", "node_addresses", ""}
	name := maps[random.IntN(len(maps))]
	var keys [][]byte
	if name != "" {
		keys, _ = pinned(r, n, name)
	}
	if len(keys) == 0 {
		return detachOne(r, n, random)
	}
	m := openPinned(r, n, name)
	defer func() { _ = m.Close() }()
	key := keys[random.IntN(len(keys))]
	r.must(m.Delete(key))
	return fmt.Sprintf("%x of the %s map", key, name)
}

func detachOne(r *run, n *netlab.Node, random *rand.Rand) string {
	var paths []string
	r.must(filepath.WalkDir(r.site(n).PinDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path, "link") {
			paths = append(paths, path)
		}
		return err
	}))
	path := paths[random.IntN(len(paths))]
	l, err := link.LoadPinnedLink(path, nil)
	r.must(err)
	defer func() { _ = l.Close() }()
	r.must(l.Detach())
	return "the program of link " + path
}
