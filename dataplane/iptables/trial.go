package iptables

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

const (
	// mostTries bounds the tries of one search for refused ServicePorts. It takes
	// up to three tries for two ServicePorts, and far fewer where few are refused.
	mostTries = 2000
	// mostSearch bounds the time of a search: all changes wait for it, and an agent
	// that is behind for a minute counts as stuck.
	mostSearch = 30 * time.Second
	// mostTogether is how many ServicePorts are tried together.
	mostTogether = restore.StageSize / 2
	// verdictMost is how long a verdict is remembered: longer than the Syncer
	// waits before it tries a refused ServicePort again.
	verdictMost = time.Hour
)

// errUntried says that a search ended before a ServicePort's turn.
var errUntried = errors.New("not tried yet: too many other Service ports are refused")

// verdicts are what searches found out about ServicePorts that are not programmed, so
// that a search which ends too soon is the next one's beginning.
type verdicts map[*dataplane.ServicePort]verdict

type verdict struct {
	at  time.Time // when it was tried last, or should have been for the first time
	why error     // nil: it is not tried yet
}

// try finds the ServicePorts that iptables or the kernel refuses, by writing
// their rules to chains that nothing leads to. Nothing that forwards is touched. The
// ones that are still undecided after the last try count as refused until next time.
func (f *familyBackend) try(ctx context.Context, changes []change, n *node) (refused, error) {
	now := time.Now()
	trials := f.trials(changes, n)
	f.verdicts.order(trials, now)
	s := search{limits: f.limits, bad: refused{}, refuses: func(group []trial) (*restore.Refusal, error) { return f.tryGroup(ctx, group) }}
	undecided, err := s.run(trials)
	if err != nil {
		return nil, err
	}
	f.verdicts.note(trials[:len(trials)-len(undecided)], s.bad, now)
	maps.Copy(s.bad, f.verdicts.assume(undecided, now))
	return s.bad, nil
}

// order sorts trials: first what is not tried yet, then what was refused, and of both
// first what waits longest.
func (v verdicts) order(trials []trial, now time.Time) {
	maps.DeleteFunc(v, func(_ *dataplane.ServicePort, known verdict) bool { return now.Sub(known.at) > verdictMost })
	of := func(t trial) verdict {
		if known, ok := v[t.port]; ok {
			return known
		}
		return verdict{at: now}
	}
	slices.SortStableFunc(trials, func(a, b trial) int {
		x, y := of(a), of(b)
		switch {
		case x.why == nil && y.why != nil:
			return -1
		case x.why != nil && y.why == nil:
			return 1
		}
		return x.at.Compare(y.at)
	})
}

// note notes which of those that were tried are refused.
func (v verdicts) note(tried []trial, bad refused, now time.Time) {
	for _, t := range tried {
		if why, refused := bad[t.id]; refused {
			v[t.port] = verdict{at: now, why: why}
		} else {
			delete(v, t.port)
		}
	}
}

// assume returns why those that no search came to are refused: for the reason for which
// they were before, if they were.
func (v verdicts) assume(undecided []trial, now time.Time) refused {
	out := refused{}
	for _, t := range undecided {
		known, ok := v[t.port]
		if !ok {
			known = verdict{at: now}
			v[t.port] = known
		}
		if out[t.id] = known.why; known.why == nil {
			out[t.id] = errUntried
		}
	}
	return out
}

// limits are those of one search.
type limits struct {
	tries int
	time  time.Duration
}

// search looks for the refused ServicePorts in groups, of which it learns whether all
// of one are taken. Groups grow while they are, and shrink while they are not, so that a
// few refused ones are found in few tries, and many take little more than a try each.
type search struct {
	limits
	refuses func([]trial) (*restore.Refusal, error)
	bad     refused // so far, and why
}

// run searches trials from the first to the last. It returns the last ones that it has
// not decided within its limits. It decides at least one.
func (s *search) run(trials []trial) (undecided []trial, err error) {
	size := mostTogether
	suspect := 0 // so many of the next ones hold a refused one
	all, start := len(trials), time.Now()
	for tries := 0; len(trials) > 0; tries++ {
		if len(trials) < all && (tries >= s.tries || time.Since(start) > s.time) {
			break
		}
		size = min(size, len(trials))
		no, err := s.refuses(trials[:size])
		if err != nil {
			return nil, err
		}
		if no == nil {
			trials = trials[size:]
			if suspect -= size; suspect > 0 {
				size = max(suspect/2, 1)
			} else {
				size = min(2*size, mostTogether)
			}
			continue
		}
		suspect = size
		if n := s.blame(trials[:size], no); n > 0 {
			trials = trials[n:]
			size, suspect = max(size-n, 1), 0
		} else {
			size /= 2
		}
	}
	return trials, nil
}

// blame puts those of a group first that its refusal is about, notes them as refused,
// and returns how many they are. A refusal is about those whose lines it names, and
// about a group of one in any case.
func (s *search) blame(group []trial, no *restore.Refusal) int {
	isAbout := func(t trial) bool { return len(group) == 1 || slices.ContainsFunc(no.Lines, t.wrote) }
	var blamed, rest []trial
	for _, t := range group {
		if isAbout(t) {
			s.bad[t.id] = no
			blamed = append(blamed, t)
		} else {
			rest = append(rest, t)
		}
	}
	copy(group, append(blamed, rest...))
	return len(blamed)
}

// trial is one ServicePort's rules under other names.
type trial struct {
	id          dataplane.PortID
	port        *dataplane.ServicePort
	chains      []restore.Chain
	rules       []string // of the trees
	first, last int      // lines of the input that are its
}

func (t trial) wrote(line int) bool { return t.first <= line && line <= t.last }

func (f *familyBackend) trials(changes []change, n *node) []trial {
	var out []trial
	names := trialNames()
	h := newHeld(*n)
	for _, c := range changes {
		if c.new == nil {
			continue
		}
		p := planFor(c.new, n)
		t := trial{id: c.id(), port: c.new}
		for _, ch := range p.chains {
			t.chains = append(t.chains, restore.Chain{Name: names.Replace(ch.Name), Body: names.Replace(ch.Body)})
		}
		for _, e := range p.entries {
			t.rules = append(t.rules, names.Replace(string(h.treeOf(e).rule(nil, "", e.key, e.value))))
		}
		out = append(out, t)
	}
	return out
}

// trialNames replaces each of our chains by a stand-in to which nothing leads.
func trialNames() *strings.Replacer {
	return strings.NewReplacer(
		prefixPool, "SY-U-", prefixChoice, "SY-V-", prefixSources, "SY-W-", ownPrefix, prefixTrial)
}

// tryGroup writes a group of trials and removes them again. A nil refusal
// means that all are fine.
func (f *familyBackend) tryGroup(ctx context.Context, group []trial) (*restore.Refusal, error) {
	const dispatch = prefixTrial + "DISPATCH"
	chains := map[string]bool{dispatch: true}
	names := trialNames()
	for _, c := range natConstants(&node{family: f.family, bit: f.bit}) {
		chains[names.Replace(c.Name)] = true
	}
	for _, t := range group {
		for _, c := range t.chains {
			chains[c.Name] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(chains))
	var in bytes.Buffer
	in.WriteString("*" + restore.NAT + "\n")
	for _, name := range sorted {
		in.WriteString(":" + name + " - [0:0]\n")
	}
	line := len(sorted) + 1
	for i := range group {
		t := &group[i]
		start := in.Len()
		for _, c := range t.chains {
			restore.WriteRules(&in, c)
		}
		restore.WriteRules(&in, restore.Chain{Name: dispatch, Body: strings.Join(t.rules, "")})
		t.first = line + 1
		line += bytes.Count(in.Bytes()[start:], []byte("\n"))
		t.last = line
	}
	in.WriteString("COMMIT\n")
	err := f.commands.Restore(ctx, in.Bytes())
	if no := (*restore.Refusal)(nil); errors.As(err, &no) {
		return no, nil
	}
	if err != nil {
		return nil, err
	}
	tx := &restore.Writes{}
	tx.Table(restore.NAT).Remove = sorted
	return nil, f.commands.Restore(ctx, tx.Text())
}
