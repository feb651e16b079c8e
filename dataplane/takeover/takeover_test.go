package takeover

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

func tables(t *testing.T) int {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	return len(slices.DeleteFunc(all, func(t *nftables.Table) bool { return t.Name != tableName }))
}

var both = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

// TestRun: what was there is drained before it is removed, one after the other,
// while NAT is held; in the end nothing is left.
func TestRun(t *testing.T) {
	kerneltest.OwnNetns(t)
	var done []string
	failures := 1
	step := func(what string, err error) func(context.Context) error {
		return func(context.Context) error {
			if tables(t) != 2 {
				t.Errorf("%s: NAT is held by %d tables, want one for each family", what, tables(t))
			}
			done = append(done, what)
			if err != nil && failures > 0 {
				failures--
				return err
			}
			return nil
		}
	}
	Run(t.Context(), slog.New(slog.DiscardHandler), both, []Old{
		{Name: "ebpf", Drain: step("drain ebpf", nil), Remove: step("remove ebpf", nil)},
		{Name: "kube-proxy", Remove: step("remove kube-proxy", errors.New("the lock is held"))},
	})
	if want := []string{"drain ebpf", "remove ebpf", "remove kube-proxy", "remove kube-proxy"}; !slices.Equal(done, want) {
		t.Errorf("done: %q, want %q", done, want)
	}
	if n := tables(t); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}

// TestHold: it can be made twice, as after a restart, and removed twice.
func TestHold(t *testing.T) {
	kerneltest.OwnNetns(t)
	for range 2 {
		if err := Hold(both); err != nil {
			t.Fatal(err)
		}
	}
	if n := tables(t); n != 2 {
		t.Errorf("%d tables, want 2", n)
	}
	for range 2 {
		if err := Release(both); err != nil {
			t.Fatal(err)
		}
	}
	if n := tables(t); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}
