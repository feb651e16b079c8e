package hostfirewall

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/netns"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestListensOnceTheKernelForwards: while anybody listens, the kernel tells of each
// element that the first Sync writes.
func TestListensOnceTheKernelForwards(t *testing.T) {
	kerneltest.NeedRoot(t)
	err := netns.InScratch(func() error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		k := NewKeeper(Config{Log: slog.New(slog.DiscardHandler), MasqueradeBit: 14})
		sockets := fmt.Sprintf("/proc/self/task/%d/net/netlink", unix.Gettid())
		go func() {
			defer cancel()
			time.Sleep(100 * time.Millisecond)
			if listens(t, sockets) {
				t.Error("it listens before the first Sync")
			}
			k.Synced(&dataplane.Snapshot{})
			for end := time.Now().Add(10 * time.Second); !listens(t, sockets); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Error("it does not listen after the first Sync")
					return
				}
			}
		}()
		k.Run(ctx)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// listens reports whether a socket of netfilter is in a group.
func listens(t *testing.T, sockets string) bool {
	text, err := os.ReadFile(sockets)
	if err != nil {
		t.Error(err)
		return false
	}
	for line := range strings.Lines(string(text)) {
		// Its address, protocol, port ID and groups.
		if f := strings.Fields(line); f[1] == fmt.Sprint(unix.NETLINK_NETFILTER) && strings.Trim(f[3], "0") != "" {
			return true
		}
	}
	return false
}
