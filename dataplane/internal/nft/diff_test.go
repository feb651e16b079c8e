package nft

import (
	"slices"
	"testing"

	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestRangeTooMany: a range that nobody wants, at a place that has others, goes in
// the step that adds new ones, and is said.
func TestRangeTooMany(t *testing.T) {
	key := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeIPAddr)
	table := NewTable(dataplane.IPv4, Spec{Name: "t", Sets: []Set{{Name: "sources", Key: key, Intervals: true}}}, &Counts{})
	at := func(last string) Element {
		const place = "\x0a\x60\x00\x01" + "\x06\x00\x00\x00" + "\x00\x50\x00\x00"
		return Element{Family: dataplane.IPv4, Set: "sources", Key: place + "\xc0\x00\x02\x00" + place + "\xc0\x00\x02" + last}
	}
	held := &State{Present: true, Elements: map[Element]string{at("\x0f"): "", at("\x1f"): ""}}
	d := NewDiff(table, nil, map[Element]int{})
	if err := d.HoldAll(held, nil, nil); err != nil {
		t.Fatal(err)
	}
	d.WantPlan(&Plan{Own: map[Element]string{at("\x0f"): ""}})
	d.Rest()
	if len(d.First.Put) > 0 || !slices.Equal(d.First.Remove, []Element{at("\x1f")}) || len(d.Last.Remove) > 0 {
		t.Errorf("writes are %+v, then %+v", d.First, d.Last)
	}
	if words := d.Words(); !slices.Equal(words, []string{"nftables table ip t: nobody's any more: elements (1) of sources"}) {
		t.Errorf("said: %q", words)
	}
}
