package nft

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// State is what the kernel holds of a table.
type State struct {
	Whole    bool                // all sets and base chains are there
	Present  bool                // the table is
	Chains   map[string][]string // the comments of each chain's rules
	Elements map[Element]string  // with their data; of a map to verdicts, the chain
}

// mostReads is how often a table is read again because somebody changed
// nftables meanwhile. A dump that a change ran into may lack elements.
const mostReads = 5

// Read reads the table back.
func (t *Table) Read() (*State, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		before, err := t.generation()
		if err != nil {
			return nil, err
		}
		s, err := t.read()
		if err != nil && !errors.Is(err, unix.ENOENT) { // else something of the table went meanwhile
			return nil, err
		}
		after, again := t.generation()
		if again != nil {
			return nil, again
		}
		if before == after || try == mostReads {
			return s, err
		}
	}
}

func (t *Table) read() (*State, error) {
	s := &State{Chains: map[string][]string{}, Elements: map[Element]string{}}
	var err error
	if s.Present, err = t.exists(); err != nil || !s.Present {
		return s, err
	}
	if s.Whole, err = t.readChains(s); err != nil {
		return nil, err
	}
	have, err := t.conn.GetSets(t.nft)
	if err != nil {
		return nil, fmt.Errorf("reading the sets of the %s: %w", t, err)
	}
	found := map[string]bool{}
	for _, set := range have {
		found[set.Name] = true
	}
	for _, kind := range t.spec.Sets {
		if !found[kind.Name] {
			s.Whole = false
			continue
		}
		if kind.Clients == 0 {
			if err := t.readSet(kind.Name, s.Elements); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// readChains reads the chains and reports whether the base chains are as they must be.
func (t *Table) readChains(s *State) (bool, error) {
	chains, err := t.conn.ListChainsOfTableFamily(t.nft.Family)
	if err != nil {
		return false, fmt.Errorf("listing the chains of the %s: %w", t, err)
	}
	missing := maps.Clone(t.spec.Hooks)
	maps.DeleteFunc(missing, func(_ string, h Hook) bool { return h.Optional })
	for _, chain := range chains {
		if chain.Table.Name != t.spec.Name {
			continue
		}
		s.Chains[chain.Name] = t.comments(chain)
		if want, ok := missing[chain.Name]; ok && chain.Hooknum != nil && *chain.Hooknum == *want.Hook &&
			*chain.Priority == *want.Priority && chain.Type == want.Type {
			delete(missing, chain.Name)
		}
	}
	return len(missing) == 0, nil
}

// comments returns the comments of a chain's rules. A chain whose rules cannot
// be read has something in it that we did not write: it has a comment that no
// rule of ours has, so that it is written anew.
func (t *Table) comments(chain *nftables.Chain) []string {
	rules, err := t.conn.GetRules(t.nft, chain)
	if err != nil {
		return []string{"unreadable: " + err.Error()}
	}
	out := make([]string, 0, len(rules))
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.Type(0))
		out = append(out, comment)
	}
	return out
}

// ChainComments returns the comments of one chain's rules, none if the chain is not there.
func (t *Table) ChainComments(name string) ([]string, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	present, err := t.exists()
	if err != nil || !present {
		if notHere(err) {
			err = nil
		}
		return nil, err
	}
	return t.comments(&nftables.Chain{Table: t.nft, Name: name}), nil
}

// Packets returns what the counters of a chain's rules have counted.
func (t *Table) Packets(chain string) (uint64, error) {
	if err := t.open(); err != nil {
		return 0, err
	}
	rules, err := t.conn.GetRules(t.nft, &nftables.Chain{Table: t.nft, Name: chain})
	if err != nil {
		return 0, fmt.Errorf("reading chain %s of the %s: %w", chain, t, err)
	}
	var n uint64
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				n += c.Packets
			}
		}
	}
	return n, nil
}

func (t *Table) readSet(name string, into map[Element]string) error {
	elements, err := t.conn.GetSetElements(t.sets[name])
	if err != nil {
		return fmt.Errorf("reading the set %s of the %s: %w", name, t, err)
	}
	verdicts := t.IsVerdictMap(name)
	for _, e := range elements {
		data := string(e.Val)
		if verdicts {
			if data, err = chainOf(e.Val); err != nil {
				return fmt.Errorf("reading the map %s of the %s: %w", name, t, err)
			}
		}
		into[Element{t.Family, name, string(e.Key) + string(e.KeyEnd)}] = data
	}
	return nil
}

// chainOf returns the chain that an element's verdict leads to.
func chainOf(b []byte) (string, error) {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return "", err
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_VERDICT_CHAIN {
			return strings.TrimRight(string(a.Data), "\x00"), nil
		}
	}
	return "", nil
}
