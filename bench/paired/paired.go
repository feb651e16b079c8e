// Package paired measures several things in turn, in slices so short that what else the machine does hits all alike.
package paired

import (
	"context"
	"fmt"
	"math/rand/v2"
)

// Column is one of the things that are measured side by side.
type Column struct {
	Name  string
	Slice func() (Sample, error)
}

// Sample is what one slice said: a figure for each name of a metric. All columns
// have the same names.
type Sample map[string]float64

// Rounds measures each column once in each round, in an order that chance decides
// anew. It calls add with what each slice said.
func Rounds(ctx context.Context, rounds int, columns []Column, add func(column int, s Sample)) error {
	for range rounds {
		for _, c := range rand.Perm(len(columns)) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			s, err := columns[c].Slice()
			if err != nil {
				return fmt.Errorf("%s: %w", columns[c].Name, err)
			}
			add(c, s)
		}
	}
	return nil
}
