package ipvs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Sizes of what goes to the kernel at once.
const (
	elementsAMessage = 400     // an attribute holds 64 KiB
	elementsAWrite   = 20_000  // a write must fit into the socket's buffer
	socketBuffer     = 8 << 20 // bytes
	affinityClients  = 1 << 18 // that are remembered in a family
)

// table is our nftables table of one family.
type table struct {
	family dataplane.Family
	nft    *nftables.Table
	sets   map[string]*nftables.Set
	counts *counts
}

func newTable(f dataplane.Family, c *counts) *table {
	t := &table{family: f, nft: &nftables.Table{Family: tableFamily(f), Name: tableName}, counts: c}
	t.sets = setsOf(t.nft, f)
	return t
}

// setsOf are the sets and maps of a table, empty.
func setsOf(t *nftables.Table, f dataplane.Family) map[string]*nftables.Set {
	addr, number := nftables.TypeIPAddr, nftables.TypeClassID
	if f == dataplane.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	none := nftables.SetDatatype{}
	concat := nftables.MustConcatSetType // a handful of types never are too many
	place := concat(addr, nftables.TypeInetProto, nftables.TypeInetService)
	endpoint := concat(addr, nftables.TypeInetService)
	sets := map[string]*nftables.Set{}
	add := func(name string, key, data nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: key, DataType: data, IsMap: data != none}
		s.Concatenation = strings.Contains(key.Name, " . ")
		sets[name] = s
		return s
	}
	for _, s := range frontendSets() {
		add(s.set, place, none)
	}
	for _, name := range []string{setMasquerade, setEmpty, setPicks, setSticky, setStickyIn} {
		add(name, place, nftables.TypeVerdict)
	}
	for _, name := range []string{setPicked, setMembers, setMembersIn} {
		add(name, concat(addr, nftables.TypeInetProto, nftables.TypeInetService, number), endpoint)
	}
	add(setVIPs, addr, none)
	add(setAddresses, addr, none)
	add(setRestricted, place, none)
	add(setInside, place, none)
	add(setSources, concat(addr, nftables.TypeInetProto, nftables.TypeInetService, addr), none).Interval = true
	add(setHairpin, concat(addr, addr, nftables.TypeInetProto, nftables.TypeInetService), none)
	add(setIDs, place, number)
	add(setLearn, number, nftables.TypeVerdict)
	affinity := add(setAffinity, concat(number, addr), number)
	affinity.HasTimeout, affinity.Dynamic, affinity.Size = true, true, affinityClients
	return sets
}

// tableState is what the kernel holds.
type tableState struct {
	whole    bool                // all sets and base chains are there
	present  bool                // the table is
	chains   map[string][]string // the notes of each chain's rules
	elements map[element]string
}

func (t *table) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(
		func(c *netlink.Conn) error { return c.SetReadBuffer(socketBuffer) },
		func(c *netlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
	))
}

// read reads the table back.
func (t *table) read() (*tableState, error) {
	s := &tableState{chains: map[string][]string{}, elements: map[element]string{}}
	c, err := t.conn()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	if s.present, err = t.exists(c); err != nil || !s.present {
		return s, err
	}
	if s.whole, err = t.readChains(c, s); err != nil {
		return nil, err
	}
	have, err := c.GetSets(t.nft)
	if err != nil {
		return nil, fmt.Errorf("reading the sets of the %s table %s: %w", t.family, tableName, err)
	}
	found := map[string]bool{}
	for _, set := range have {
		found[set.Name] = true
	}
	for name, set := range t.sets {
		if !found[name] {
			s.whole = false
			continue
		}
		if name == setAffinity {
			continue // packets write it
		}
		if err := t.readSet(c, set, s.elements); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (t *table) exists(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(t.nft.Family)
	if err != nil {
		return false, fmt.Errorf("listing the %s tables: %w", t.family, err)
	}
	return slices.ContainsFunc(tables, func(have *nftables.Table) bool { return have.Name == tableName }), nil
}

// readChains reads the chains and reports whether the base chains are as they must be.
func (t *table) readChains(c *nftables.Conn, s *tableState) (bool, error) {
	chains, err := c.ListChainsOfTableFamily(t.nft.Family)
	if err != nil {
		return false, fmt.Errorf("listing the %s chains: %w", t.family, err)
	}
	base := baseChains()
	for _, chain := range chains {
		if chain.Table.Name != tableName {
			continue
		}
		rules, err := c.GetRules(t.nft, chain)
		if err != nil {
			return false, fmt.Errorf("reading the rules of the %s chain %s: %w", t.family, chain.Name, err)
		}
		notes := make([]string, 0, len(rules))
		for _, r := range rules {
			note, _ := userdata.GetString(r.UserData, userdata.Type(0))
			notes = append(notes, note)
		}
		s.chains[chain.Name] = notes
		if want, ok := base[chain.Name]; ok && chain.Hooknum != nil && *chain.Hooknum == *want.hook && *chain.Priority == *want.priority {
			delete(base, chain.Name)
		}
	}
	return len(base) == 0, nil
}

func (t *table) readSet(c *nftables.Conn, set *nftables.Set, into map[element]string) error {
	elements, err := c.GetSetElements(set)
	if err != nil {
		return fmt.Errorf("reading the %s set %s: %w", t.family, set.Name, err)
	}
	for _, e := range elements {
		data := string(e.Val)
		if yes, _ := verdictMap(set.Name); yes {
			if data, err = chainOf(e.Val); err != nil {
				return fmt.Errorf("reading the %s map %s: %w", t.family, set.Name, err)
			}
		}
		into[element{t.family, set.Name, string(e.Key) + string(e.KeyEnd)}] = data
	}
	return nil
}

// chainOf is the chain that an element's verdict leads to.
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

// tableChange is what to write. It happens in this order, in one step as long
// as it is not huge.
type tableChange struct {
	remake    bool // remove the table, if it is there, and make it anew
	present   bool
	chains    map[string][]code // to make or to write anew
	put       map[element]string
	replaced  map[element]bool // of put: there with other data
	remove    []element
	oldChains []string
}

func (c *tableChange) empty() bool {
	return !c.remake && len(c.chains) == 0 && len(c.put) == 0 && len(c.remove) == 0 && len(c.oldChains) == 0
}

// write makes a change. note is what to remember with rules of a chain.
func (t *table) write(change *tableChange, note func(chain string) string) error {
	if change.empty() {
		return nil
	}
	c, err := t.conn()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	if change.remake {
		if err := t.remake(c, change.present); err != nil {
			return err
		}
	}
	if err := t.writeChains(c, change.chains, note); err != nil {
		return err
	}
	if err := t.writeElements(c, change); err != nil {
		return err
	}
	for _, name := range change.oldChains {
		c.DelChain(&nftables.Chain{Table: t.nft, Name: name})
		t.counts.rules++
	}
	return t.flush(c)
}

func (t *table) remake(c *nftables.Conn, present bool) error {
	if present {
		c.DelTable(t.nft)
	}
	c.AddTable(t.nft)
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		if err := c.AddSet(t.sets[name], nil); err != nil {
			return fmt.Errorf("making the %s set %s: %w", t.family, name, err)
		}
	}
	return nil
}

// writeChains makes all chains before the first rule, as rules lead to them.
func (t *table) writeChains(c *nftables.Conn, chains map[string][]code, note func(string) string) error {
	base := baseChains()
	names := slices.Sorted(maps.Keys(chains))
	for _, name := range names {
		chain := &nftables.Chain{Table: t.nft, Name: name}
		if b, ok := base[name]; ok {
			chain.Hooknum, chain.Priority, chain.Type = b.hook, b.priority, b.kind
		}
		c.AddChain(chain)
		c.FlushChain(chain)
	}
	for _, name := range names {
		for i, rule := range chains[name] {
			text, err := signature(t.nft.Family, rule)
			if err != nil {
				return fmt.Errorf("writing rule %d of chain %s: %w", i, name, err)
			}
			c.AddRule(&nftables.Rule{
				Table: t.nft, Chain: &nftables.Chain{Table: t.nft, Name: name}, Exprs: rule,
				UserData: userdata.AppendString(nil, userdata.Type(0), text+note(name)),
			})
			t.counts.rules++
		}
	}
	return nil
}

// notes are what the rules of a chain carry when they are as wanted.
func (t *table) notes(chain []code, note string) ([]string, error) {
	out := make([]string, 0, len(chain))
	for _, rule := range chain {
		text, err := signature(t.nft.Family, rule)
		if err != nil {
			return nil, err
		}
		out = append(out, text+note)
	}
	return out, nil
}

// signature tells one rule from another.
func signature(f nftables.TableFamily, rule code) (string, error) {
	h := sha256.New()
	for _, e := range rule {
		b, err := expr.Marshal(byte(f), e)
		if err != nil {
			return "", err
		}
		_, _ = h.Write(b) // never fails
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), nil
}

// writeElements puts elements, the addresses last: what is reached at one
// is known by then. Elements that get other data are replaced in one step.
func (t *table) writeElements(c *nftables.Conn, change *tableChange) error {
	bySet := map[string][]nftables.SetElement{}
	replaced, removed := map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	for e, data := range change.put {
		bySet[e.set] = append(bySet[e.set], t.element(e, data))
		if change.replaced[e] {
			replaced[e.set] = append(replaced[e.set], t.element(e, ""))
		}
	}
	for _, e := range change.remove {
		removed[e.set] = append(removed[e.set], t.element(e, ""))
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(t.sets)), func(name string) bool { return name == setVIPs })
	pending := 0
	for _, name := range append(names, setVIPs) {
		for _, step := range []struct {
			elements []nftables.SetElement
			do       func(*nftables.Set, []nftables.SetElement) error
		}{{replaced[name], c.SetDeleteElements}, {removed[name], c.SetDeleteElements}, {bySet[name], c.SetAddElements}} {
			for chunk := range slices.Chunk(step.elements, elementsAMessage) {
				if err := step.do(t.sets[name], chunk); err != nil {
					return fmt.Errorf("writing the %s set %s: %w", t.family, name, err)
				}
				t.counts.elements += len(chunk)
				if pending += len(chunk); pending > elementsAWrite {
					pending = 0
					if err := t.flush(c); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// element is one as the library takes it.
func (t *table) element(e element, data string) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key)}
	if t.sets[e.set].Interval {
		out.Key, out.KeyEnd = []byte(e.key[:len(e.key)/2]), []byte(e.key[len(e.key)/2:])
	}
	if yes, returns := verdictMap(e.set); yes && data != "" {
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: data}
		if returns {
			out.VerdictData.Kind = expr.VerdictJump
		}
		return out
	}
	out.Val = []byte(data)
	return out
}

func (t *table) flush(c *nftables.Conn) error {
	t.counts.transactions++
	if err := c.Flush(); err != nil {
		return fmt.Errorf("writing the %s table %s: %w", t.family, tableName, err)
	}
	return nil
}

// remove removes the table, if it is there.
func (t *table) remove() error {
	c, err := t.conn()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	present, err := t.exists(c)
	if err != nil || !present {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil // no nftables here
		}
		return err
	}
	c.DelTable(t.nft)
	return t.flush(c)
}

// counts are what was written, for those who measure.
type counts struct {
	transactions int // of nftables
	rules        int // and chains removed
	elements     int
	messages     int // to IPVS
	routes       int
}
