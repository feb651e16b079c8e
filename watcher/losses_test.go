package watcher

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/loglimit"
)

// flood is Services of one tenant that all want one address and port.
func flood(n int) []*facts.Service {
	all := make([]*facts.Service, n)
	for i := range all {
		all[i] = claiming(fmt.Sprintf("service-%05d", i), i, int64(i), "203.0.113.1", 0)
		all[i].UID = fmt.Sprint("uid-", i)
	}
	return all
}

// TestAFloodOfConflicts: what a tenant who makes thousands of Services with one
// address costs the log, and how often those who send Events are called.
func TestAFloodOfConflicts(t *testing.T) {
	const n = 3000
	for _, c := range []struct {
		name  string
		apply func(w *watched)
	}{
		{"one by one", func(w *watched) {
			for _, s := range flood(n) {
				w.Apply(put(s))
			}
		}},
		{"one by one, each older than the last", func(w *watched) {
			for i, s := range flood(n) {
				s.Created = int64(n - i)
				w.Apply(put(s))
			}
		}},
		{"all at once", func(w *watched) { w.Apply(put(flood(n)...)) }},
		{"and the holder goes, time and again", func(w *watched) {
			all := flood(n)
			w.Apply(put(all...))
			for _, s := range all {
				w.Apply(facts.Change{Services: facts.Delta[facts.Service]{Remove: []facts.Name{s.Name}}})
			}
		}},
		{"and each Service changes", func(w *watched) {
			w.Apply(put(flood(n)...))
			for _, s := range flood(n) {
				s.Affinity = time.Hour
				w.Apply(put(s))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			told := map[string]int{}
			w := watch(t, func(o *Options) { o.Conflict = func(l Loss) { told[l.Service().String()]++ } })
			w.SetAddresses(nil)
			w.Apply(known(nil, nil, hereNode()))
			c.apply(w)
			lines := strings.Split(strings.TrimSpace(w.log.String()), "\n")
			for _, l := range lines {
				if len(l) > 1000 {
					t.Errorf("a line of %d bytes", len(l))
				}
			}
			if len(lines) > 2*loglimit.MostLines { // the minute may end on the way
				t.Errorf("%d lines, %d bytes", len(lines), w.log.Len())
			}
			for s, times := range told {
				if times > 1 {
					t.Errorf("%s is told of %d times", s, times)
				}
			}
		})
	}
}

func TestALineNamesFew(t *testing.T) {
	w := watch(t, nil)
	w.SetAddresses(nil)
	w.Apply(known(flood(100), nil, hereNode()))
	line := w.log.String()
	if strings.Count(line, "shop/service-") != 1+mostNames || !strings.Contains(line, "more=94") {
		t.Errorf("got %s", line)
	}
	if c := w.Status().Conflicts; len(c) != 1 || len(c[0].Without) != 99 || c[0].Without[98] != "shop/service-00099" {
		t.Errorf("status has %v", c)
	}
}

// TestWhatNoLineTold: the next line counts what had no line of its own.
func TestWhatNoLineTold(t *testing.T) {
	w := watch(t, nil)
	w.SetAddresses(nil)
	w.Apply(known(nil, nil, hereNode()))
	for _, s := range flood(loglimit.MostLines + 11) { // the first of them loses nothing
		w.Apply(put(s))
	}
	w.losses.lines.Since = time.Now().Add(-loglimit.Pause)
	last := claiming("z", 60000, 90000, "203.0.113.1", 0)
	w.Apply(put(last))
	lines := strings.Split(strings.TrimSpace(w.log.String()), "\n")
	if n := len(lines); n != loglimit.MostLines+1 || !strings.Contains(lines[n-1], "without=[shop/z]") || !strings.Contains(lines[n-1], "others=10") {
		t.Errorf("%d lines, the last: %s", n, lines[n-1])
	}
}

// TestSpeaks: of what all nodes know few of them report, whatever the cluster's size.
func TestSpeaks(t *testing.T) {
	for _, c := range []struct{ nodes, least, most int }{{1, 1, 1}, {3, 3, 3}, {30, 1, 12}, {300, 1, 12}, {2000, 1, 40}} {
		var sets []*facts.Slice
		for i := range c.nodes {
			f := set(fmt.Sprint("web-", i), "web", 1)
			f.Endpoints[0].Addr = netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
			f.Endpoints[0].Place = facts.MakePlace(fmt.Sprint("node-", i), "z")
			sets = append(sets, f)
		}
		w := watch(t, nil)
		w.SetAddresses(nil)
		w.Apply(known(nil, sets, hereNode()))
		fewest, total := c.nodes, 0
		services := max(2, min(20, 2000/c.nodes))
		for s := range services {
			speak := 0
			for i := range c.nodes {
				w.set.NodeName = fmt.Sprint("node-", i)
				if w.Speaks(fmt.Sprint("uid-", s)) {
					speak++
				}
			}
			fewest, total = min(fewest, speak), total+speak
		}
		if mean := total / services; mean < c.least || mean > c.most || c.nodes <= 3 && fewest < c.nodes {
			t.Errorf("of %d nodes %d report on average, at least %d", c.nodes, mean, fewest)
		}
	}
}

// BenchmarkConflictFlood is one more Service that wants an address which many want.
func BenchmarkConflictFlood(b *testing.B) {
	for _, n := range []int{100, 3000, 30000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := watch(b, nil)
			w.SetAddresses(nil)
			w.Apply(known(flood(n), nil, hereNode()))
			s := claiming("z", 60000, 90000, "203.0.113.1", 0)
			b.ReportAllocs()
			for b.Loop() {
				w.Apply(put(s))
				w.Apply(facts.Change{Services: facts.Delta[facts.Service]{Remove: removed("z")}})
			}
		})
	}
}
