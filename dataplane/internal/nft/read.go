package nft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// State is what the kernel holds of a table.
type State struct {
	Present bool // the table is there
	// Strange says that something of the table cannot be made right in place: its
	// flags, a base chain's hook, a set's type, a set that is not ours.
	Strange  bool
	Missing  []string            // sets
	Chains   map[string][]string // the comments of each chain's rules
	Elements map[Element]string  // with their data; of a map to verdicts, the chain
}

// Whole reports whether all sets and base chains are there as they must be.
func (s *State) Whole() bool { return s.Present && !s.Strange && len(s.Missing) == 0 }

// NumberOf returns the number that a map has for a ServicePort, by the place of one of
// its frontends other than a NodePort; 0: none.
func (s *State) NumberOf(port *dataplane.ServicePort, set string) uint32 {
	for _, f := range port.Frontends {
		if f.Kind == dataplane.NodePort {
			continue
		}
		if data, ok := s.Elements[Element{Family: port.ID.Family, Set: set, Key: PlaceBytes(f.Addr.Addr(), port.ID.Protocol, f.Addr.Port())}]; ok {
			return NumberOf(data)
		}
	}
	return 0
}

// mostReads is how often a table is read again because somebody changed
// nftables meanwhile. A dump that a change ran into may lack elements.
const mostReads = 5

// Read reads the table back. It does so once where nobody but the writers of the
// same Watch changed nftables meanwhile: who reads alongside them knows that they
// write, and reads again if something seems to be missing. While changes come one
// after the other, each read of many elements would meet one.
func (t *Table) Read() (*State, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		before, err := t.now()
		if err != nil {
			return nil, err
		}
		s, err := t.read()
		if err != nil && !errors.Is(err, unix.ENOENT) { // else something of the table went meanwhile
			return nil, err
		}
		after, again := t.now()
		if again != nil {
			return nil, again
		}
		if before == after || err == nil && before.foreign == after.foreign || try == mostReads {
			return s, err
		}
	}
}

func (t *Table) read() (*State, error) {
	t.reads++
	s := &State{Chains: map[string][]string{}, Elements: map[Element]string{}}
	found, err := t.find()
	if err != nil || found == nil {
		return s, err
	}
	s.Present, s.Strange = true, found.Flags != 0 // dormant: no chain of it runs
	if err := t.readChains(s); err != nil {
		return nil, err
	}
	return s, t.readSets(s)
}

// readSets reads the elements, and notes which sets are missing or of another type.
func (t *Table) readSets(s *State) error {
	have, err := t.conn.GetSets(t.nft)
	if err != nil {
		return fmt.Errorf("reading the sets of the %s: %w", t, err)
	}
	found := map[string]bool{}
	for _, set := range have {
		found[set.Name] = true
		want := t.sets[set.Name]
		s.Strange = s.Strange || want == nil || !fits(set, want)
	}
	if s.Strange {
		return nil
	}
	for _, kind := range t.spec.Sets {
		if !found[kind.Name] {
			s.Missing = append(s.Missing, kind.Name)
			continue
		}
		if kind.Clients == 0 {
			if err := t.readSet(kind.Name, s.Elements); err != nil {
				return err
			}
		}
	}
	return nil
}

// fits reports whether elements for want fit into a set. Of maps to verdicts the
// library reads no types.
func fits(have, want *nftables.Set) bool {
	if have.IsMap != want.IsMap || have.Interval != want.Interval || have.HasTimeout != want.HasTimeout {
		return false
	}
	return want.DataType == nftables.TypeVerdict ||
		have.KeyType.Bytes == want.KeyType.Bytes && (!want.IsMap || have.DataType.Bytes == want.DataType.Bytes)
}

// notAccepted is the comment that stands for a base chain's policy, should it
// not be to accept.
const notAccepted = "policy"

// readChains reads the chains, and notes whether a base chain has another hook.
func (t *Table) readChains(s *State) error {
	chains, err := t.conn.ListChainsOfTableFamily(t.nft.Family)
	if err != nil {
		return fmt.Errorf("listing the chains of the %s: %w", t, err)
	}
	for _, chain := range chains {
		if chain.Table.Name != t.spec.Name {
			continue
		}
		s.Chains[chain.Name] = t.comments(chain)
		want, hooked := t.spec.Hooks[chain.Name]
		if hooked != (chain.Hooknum != nil) ||
			hooked && (*chain.Hooknum != *want.Hook || *chain.Priority != *want.Priority || chain.Type != want.Type) {
			s.Strange = true
		}
		if hooked && chain.Policy != nil && *chain.Policy != nftables.ChainPolicyAccept {
			s.Chains[chain.Name] = append(s.Chains[chain.Name], notAccepted)
		}
	}
	return nil
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
