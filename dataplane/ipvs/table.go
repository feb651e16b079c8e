package ipvs

import (
	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// affinityClients is how many clients a family remembers the endpoint of.
const affinityClients = 1 << 18

// newTable is our nftables table of one family.
func newTable(f dataplane.Family, c *counts) *nft.Table { return nft.NewTable(f, spec(f), &c.table) }

// spec is the sets and base chains of a table.
func spec(f dataplane.Family) nft.Spec {
	addr, number, verdict := nftables.TypeIPAddr, nftables.TypeClassID, nftables.TypeVerdict
	if f == dataplane.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	none := nftables.SetDatatype{}
	concat := nftables.MustConcatSetType // a handful of types never are too many
	place := concat(addr, nftables.TypeInetProto, nftables.TypeInetService)
	member := concat(addr, nftables.TypeInetProto, nftables.TypeInetService, number)
	endpoint := concat(addr, nftables.TypeInetService)
	var sets []nft.Set
	add := func(name string, key, data nftables.SetDatatype) {
		sets = append(sets, nft.Set{Name: name, Key: key, Data: data})
	}
	for _, name := range []string{setPicked, setMembers, setMembersIn} {
		add(name, member, endpoint)
	}
	add(setAddresses, addr, none)
	add(setRestricted, place, none)
	add(setInside, place, none)
	sets = append(sets,
		nft.Set{Name: setSources, Key: concat(addr, nftables.TypeInetProto, nftables.TypeInetService, addr), Intervals: true},
		nft.Set{Name: setAffinity, Key: concat(number, addr), Data: number, Clients: affinityClients})
	add(setHairpin, concat(addr, addr, nftables.TypeInetProto, nftables.TypeInetService), none)
	add(setIDs, place, number)
	sets = append(sets, nft.Set{Name: setLearn, Key: number, Data: verdict, Returns: true})
	for _, s := range []nft.Set{{Name: setMasquerade, Returns: true}, {Name: setEmpty}, {Name: setPicks}, {Name: setSticky, Returns: true}, {Name: setStickyIn, Returns: true}} {
		s.Key, s.Data = place, verdict
		sets = append(sets, s)
	}
	for _, s := range frontendSets() {
		add(s.set, place, none)
	}
	add(setVIPs, addr, none) // last: what is reached at an address is known by then
	return nft.Spec{Name: tableName, Sets: sets, Hooks: baseChains()}
}

// counts are what was written, for those who measure.
type counts struct {
	table    nft.Counts
	messages int // to IPVS
	routes   int
}
