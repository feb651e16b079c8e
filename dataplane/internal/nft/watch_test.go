package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestWatchOverflow: where the kernel has more to say than waits for the watch, a
// foreign change is noticed all the same. It is the last in a long transaction.
func TestWatchOverflow(t *testing.T) {
	kerneltest.OwnNetns(t)
	table := NewTable(dataplane.IPv4, Spec{Name: "ours"}, &Counts{})
	w, err := StartWatch(slog.New(slog.DiscardHandler), []*Table{table})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	w.Seen()
	if err := w.follower.SetBuffer(1); err != nil {
		t.Fatal(err)
	}
	if !w.Undisturbed() {
		t.Fatal("disturbed before anything was changed")
	}
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetReadBuffer(8 << 20) }))
	if err != nil {
		t.Fatal(err)
	}
	theirs := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "theirs"})
	for i := range 500 {
		c.AddChain(&nftables.Chain{Table: theirs, Name: fmt.Sprint("chain", i)})
	}
	c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "ours"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.Disturbed():
	case <-time.After(time.Minute):
		t.Fatal("nothing was noticed")
	}
	if w.Undisturbed() {
		t.Error("undisturbed, though changes were missed")
	}
}

// TestWatchPaused: what somebody else changes during a long write, be it after the
// last transaction of ours, is noticed; our own transactions are not, whichever of
// our tables they are of.
func TestWatchPaused(t *testing.T) {
	kerneltest.OwnNetns(t)
	var ours []*Table
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		ours = append(ours, NewTable(f, Spec{Name: "ours"}, &Counts{}))
	}
	w, err := StartWatch(slog.New(slog.DiscardHandler), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	write := func(table *Table) error {
		there, err := table.Exists()
		return errors.Join(err, table.Write(&Change{Remake: true, Present: there}, nil))
	}
	flush := func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	}
	refused := func() error {
		if err := ours[0].Write(&Change{OldChains: []string{"nowhere"}}, nil); err == nil {
			return errors.New("the kernel removed a chain that is not there")
		}
		return nil
	}
	ours0, ours1 := func() error { return write(ours[0]) }, func() error { return write(ours[1]) }
	for _, tc := range []struct {
		name  string
		steps []func() error
		want  bool
	}{
		{"nothing", nil, false},
		{"one write", []func() error{ours0}, false},
		{"several writes, and one of another table alongside", []func() error{ours0, ours1, ours0}, false},
		{"another table is paused as well", []func() error{ours0, func() error { return w.Paused(ours[1], ours1) }, ours0}, false},
		{"a write that the kernel refuses", []func() error{ours0, refused}, false},
		{"a flush before the write", []func() error{flush, ours0}, true},
		{"a flush after the write", []func() error{ours0, ours1, flush}, true},
		{"a flush while another table is paused", []func() error{ours0, func() error { return w.Paused(ours[1], flush) }}, true},
		{"a flush after a write that the kernel refuses", []func() error{ours0, refused, flush}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := w.Paused(ours[0], func() error {
				for _, step := range tc.steps {
					if err := step(); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			noticed := false
			select {
			case <-w.Disturbed():
				noticed = true
			case <-time.After(100 * time.Millisecond):
			}
			if noticed != tc.want {
				t.Errorf("noticed: %t; want %t", noticed, tc.want)
			}
		})
	}
}
