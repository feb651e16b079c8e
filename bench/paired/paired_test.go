package paired

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestRounds sees that each column has one turn in each round, and that the order
// is not the same in all.
func TestRounds(t *testing.T) {
	const rounds = 50
	var columns []Column
	for _, name := range []string{"a", "b", "c"} {
		columns = append(columns, Column{name, func() (Sample, error) { return Sample{"x": 1}, nil }})
	}
	var order []int
	if err := Rounds(context.Background(), rounds, columns, func(c int, s Sample) {
		if s["x"] != 1 {
			t.Errorf("column %d said %v", c, s)
		}
		order = append(order, c)
	}); err != nil {
		t.Fatal(err)
	}
	first := map[int]bool{}
	for round := range slices.Chunk(order, len(columns)) {
		first[round[0]] = true
		if got := slices.Sorted(slices.Values(round)); !slices.Equal(got, []int{0, 1, 2}) {
			t.Errorf("a round measured %v", round)
		}
	}
	if len(order) != rounds*len(columns) || len(first) != len(columns) {
		t.Errorf("%d turns; these columns were first in a round: %v", len(order), first)
	}
}

func TestRoundsEnd(t *testing.T) {
	broken := Column{"broken", func() (Sample, error) { return nil, errors.New("no answer") }}
	if err := Rounds(context.Background(), 3, []Column{broken}, nil); err == nil || !strings.Contains(err.Error(), "broken: no answer") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Rounds(ctx, 3, []Column{broken}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
