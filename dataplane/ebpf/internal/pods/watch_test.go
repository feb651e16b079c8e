package pods

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"

	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/cgroups"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestOverflow: where the kernel has more to say of a namespace's nftables than
// waits for its follower, its sockets are left to packets as soon as a rule is in
// the way, and translated again once it is gone.
func TestOverflow(t *testing.T) {
	kerneltest.OwnNetns(t)
	namespaces, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 8})
	if err != nil {
		kerneltest.Unable(t, "making a map: ", err)
	}
	node, err := os.Open(cgroups.NamespaceFile("self"))
	if err != nil {
		t.Fatal(err)
	}
	w := &Watcher{namespaces: namespaces, node: node, log: slog.New(slog.NewTextHandler(t.Output(), nil)), stop: make(chan struct{}), spaces: map[string]*space{}}
	defer w.Close()
	w.add("pod", "thread-self")
	s := w.spaces["pod"]
	cookie := s.cookie
	if s.events == nil {
		kerneltest.Unable(t, "this kernel has no nf_tables")
	}
	if err := s.events.SetBuffer(1); err != nil {
		t.Fatal(err)
	}
	await := func(want programs.SockNamespace) {
		t.Helper()
		var have programs.SockNamespace
		for deadline := time.Now().Add(time.Minute); have != want; time.Sleep(10 * time.Millisecond) {
			if err := namespaces.Lookup(cookie, &have); err != nil || time.Now().After(deadline) {
				t.Fatalf("the map has %d, %v; want %d", have, err, want)
			}
		}
	}
	await(programs.SockNamespaceNAMESPACE_TRANSLATED)
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetReadBuffer(8 << 20) }))
	if err != nil {
		t.Fatal(err)
	}
	mesh := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "mesh"})
	for i := range 500 {
		c.AddChain(&nftables.Chain{Table: mesh, Name: fmt.Sprint("chain", i)})
	}
	out := c.AddChain(&nftables.Chain{Table: mesh, Name: "out", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: mesh, Chain: out, Exprs: []expr.Any{&expr.Counter{}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	await(programs.SockNamespaceNAMESPACE_LEFT)
	for deadline := time.Now().Add(time.Minute); s.reason(w) != byNFTables; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left to packets for %q, want %q", s.reason(w), byNFTables)
		}
	}
	c.DelTable(mesh)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	await(programs.SockNamespaceNAMESPACE_TRANSLATED)
}

// reason is why the namespace is left to packets.
func (s *space) reason(w *Watcher) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.why()
}
