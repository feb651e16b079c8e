package nft

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Spec says what a table consists of, but for its rules and elements.
type Spec struct {
	Name  string
	Sets  []Set           // in the order in which their elements are written
	Hooks map[string]Hook // the base chains by name
}

// Set is a set or map of a table.
type Set struct {
	Name      string
	Key       nftables.SetDatatype
	Data      nftables.SetDatatype // of a map
	Intervals bool                 // an element is a first and a last key
	// Returns says that packets come back from the chains of a map to verdicts.
	Returns bool
	// Clients, if it is not 0, says that packets write the set and that it holds as
	// many elements at most. It is not read back.
	Clients uint32
}

// Hook is where the kernel enters a base chain.
type Hook struct {
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Type     nftables.ChainType
}

// Element is one element of a set or map.
type Element struct {
	Family dataplane.Family
	Set    string
	Key    string // bytes; of a set of intervals the first key and the last one
}

// Counts are what was written, for those who measure.
type Counts struct {
	Transactions int
	Rules        int // and chains removed
	Elements     int
}

// Table is one table of one address family. It is used by one goroutine at a time.
type Table struct {
	Family  dataplane.Family
	spec    Spec
	nft     *nftables.Table
	sets    map[string]*nftables.Set
	kinds   map[string]Set
	counts  *Counts
	reads   int            // of the whole table, for those who measure
	commits *commits       // shared with the other tables of a Watch
	conn    *nftables.Conn // nil: not open
	socket  *netlink.Conn  // of conn
	portID  atomic.Uint32  // of socket
}

// NewTable readies a table; nothing is asked of the kernel yet.
func NewTable(f dataplane.Family, spec Spec, c *Counts) *Table {
	t := &Table{
		Family: f, spec: spec, nft: &nftables.Table{Family: TableFamily(f), Name: spec.Name}, counts: c, commits: &commits{},
		sets: map[string]*nftables.Set{}, kinds: map[string]Set{},
	}
	for i, s := range spec.Sets {
		t.kinds[s.Name] = s
		t.sets[s.Name] = &nftables.Set{
			// Numbers a set within its transaction. The library would count those of
			// all tables, and two goroutines with a table each would race for its count.
			ID:    uint32(i + 1),
			Table: t.nft, Name: s.Name, KeyType: s.Key, DataType: s.Data, IsMap: s.Data != nftables.SetDatatype{},
			Concatenation: strings.Contains(s.Key.Name, " . "), Interval: s.Intervals,
			HasTimeout: s.Clients > 0, Dynamic: s.Clients > 0, Size: s.Clients,
		}
	}
	return t
}

// String names the table as nft does.
func (t *Table) String() string {
	family := "ip"
	if t.Family == dataplane.IPv6 {
		family = "ip6"
	}
	return fmt.Sprintf("nftables table %s %s", family, t.spec.Name)
}

// IsVerdictMap reports whether a set leads to chains.
func (t *Table) IsVerdictMap(set string) bool { return t.kinds[set].Data == nftables.TypeVerdict }

// socketBuffer is the most bytes that wait in a socket: a transaction must fit.
const socketBuffer = 128 << 20

// open connects to nftables, once.
func (t *Table) open() error {
	if t.conn != nil {
		return nil
	}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(
		func(c *netlink.Conn) error {
			t.socket = c
			id, err := portIDOf(c)
			t.portID.Store(id)
			return err
		},
		func(c *netlink.Conn) error { return c.SetReadBuffer(socketBuffer) },
		func(c *netlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
	))
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	if err := enlargeDumps(t.socket); err != nil {
		_ = c.CloseLasting()
		return fmt.Errorf("opening nftables: %w", err)
	}
	t.conn = c
	return nil
}

// PortID identifies the table's writes in the kernel's notifications; 0: there
// were none. Any goroutine may ask.
func (t *Table) PortID() uint32 { return t.portID.Load() }

// Close frees the connection and leaves the table.
func (t *Table) Close() error {
	if t.conn == nil {
		return nil
	}
	err := t.conn.CloseLasting()
	t.conn = nil
	return err
}

// Remove removes the table, if it is there.
func (t *Table) Remove() error {
	if err := t.open(); err != nil {
		return err
	}
	present, err := t.exists()
	if err != nil || !present {
		if notHere(err) {
			err = nil
		}
		return err
	}
	t.conn.DelTable(t.nft)
	return t.flush()
}

// notHere reports whether an error says that the kernel has no nftables, or none
// of a family.
func notHere(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

// Exists reports whether the kernel has the table.
func (t *Table) Exists() (bool, error) {
	if err := t.open(); err != nil {
		return false, err
	}
	there, err := t.exists()
	if notHere(err) {
		return false, nil
	}
	return there, err
}

// exists asks for the table by its name, so that no other table is looked at.
func (t *Table) exists() (bool, error) {
	found, err := t.find()
	return found != nil, err
}

// find returns the table as the kernel has it, nil if it is not there.
func (t *Table) find() (*nftables.Table, error) {
	found, err := t.conn.ListTableOfFamily(t.spec.Name, t.nft.Family)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the %s: %w", t, err)
	}
	return found, nil
}

// flush sends what is pending as one transaction.
func (t *Table) flush() error {
	t.counts.Transactions++
	if err := t.commits.count(t.conn.Flush); err != nil {
		_ = t.Close() // answers to the rest of a failed write may be under way
		return fmt.Errorf("writing the %s: %w", t, err)
	}
	return nil
}
