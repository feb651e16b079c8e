package nftables

import (
	"sync"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// counter reads what the rules count, by connections of its own.
type counter struct {
	mu     sync.Mutex
	tables []*nft.Table // nil after close
}

func newCounter(families []dataplane.Family) *counter {
	c := &counter{}
	for _, f := range families {
		c.tables = append(c.tables, nft.NewTable(f, spec(f), &nft.Counts{}))
	}
	return c
}

// counted returns the chains that count packets, and as what.
func counted() []struct{ chain, verdict string } {
	return []struct{ chain, verdict string }{{chainReject, "reject"}, {chainDrop, "drop"}, {chainForward, "invalid"}}
}

// Counts implements dataplane.Counter. A table that is not there has counted nothing.
func (b *backend) Counts() ([]dataplane.Count, error) {
	c := b.counter
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []dataplane.Count
	for _, t := range c.tables {
		for _, chain := range counted() {
			n, err := t.Packets(chain.chain)
			if err != nil {
				continue
			}
			out = append(out, dataplane.Count{
				Name: "switchyard_nftables_packets_total", Grows: true, Value: float64(n),
				Help:   "First packets that were rejected or dropped, and invalid packets of endpoints that were dropped.",
				Labels: []dataplane.Label{{Name: "family", Value: t.Family.String()}, {Name: "verdict", Value: chain.verdict}},
			})
		}
	}
	return out, nil
}

func (c *counter) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tables {
		_ = t.Close()
	}
	c.tables = nil
	return nil
}
