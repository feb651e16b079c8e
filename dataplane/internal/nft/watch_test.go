package nft

import (
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
