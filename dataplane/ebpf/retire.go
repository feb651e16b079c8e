package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// retiredCheck is how often the connections are counted that are to end.
const retiredCheck = 2 * time.Second

// retire opens the backend once more, has it serve nothing, and goes on with the
// connections in its table.
func retire(ctx context.Context, o Options, cfg dataplane.Config, node *dataplane.Node) (err error) {
	if _, err := os.Stat(o.PinDir); err != nil {
		return nil // nothing is there, or of no use to anybody
	}
	b, err := open(o, cfg)
	if err != nil {
		return fmt.Errorf("opening backend ebpf once more: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Sync(ctx, nil, &dataplane.Snapshot{Revision: 1, Node: node}); err != nil {
		return fmt.Errorf("taking the Services from backend ebpf: %w", err)
	}
	cfg.Log.Info("eBPF serves nothing new; waiting for the connections that it translates")
	for {
		count := 0
		if err := b.Flows(func(dataplane.Flow) { count++ }); err != nil || count == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retiredCheck):
		}
	}
}
