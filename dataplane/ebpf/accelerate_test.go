package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// web is a TCP Service port with one endpoint.
func web(name, frontend, endpoint string) *dataplane.ServicePort {
	return portOf(name, dataplane.TCP, frontendAt(dataplane.ClusterIP, frontend, poolOf(endpoint)))
}

// leadsTo checks where a connection of the node to an address goes; "": it is
// left to packets.
func leadsTo(t *testing.T, b *accelerated, frontend, endpoint string) {
	t.Helper()
	if got, err := connectFrom(t, b, onNode, netip.MustParseAddrPort(frontend)); err != nil || got != endpoint {
		t.Errorf("%s leads to %q, %v; want %q", frontend, got, err, endpoint)
	}
}

// What the packet backend refuses stays in the socket maps as it was.
func TestSocketsKeepWhatThePacketBackendRefuses(t *testing.T) {
	b := openBackend(t, testOptions(t))
	base := b.Backend.(*memory)
	before := snapshot(web("good", "10.96.0.1:80", "10.40.1.1:80"), web("bad", "10.96.0.2:80", "10.40.1.1:80"))
	moved := web("bad", "10.96.0.3:80", "10.40.1.2:80")
	after := snapshot(web("good", "10.96.0.1:80", "10.40.1.2:80"), moved, web("new", "10.96.0.4:80", "10.40.1.1:80"))
	mustSync(t, b, nil, before)
	base.fails = &dataplane.PartialError{Failed: []dataplane.PortError{{ID: moved.ID, Err: errors.New("no")}}}
	for _, prev := range []*dataplane.Snapshot{before, nil} {
		err := b.Sync(t.Context(), prev, after)
		var partial *dataplane.PartialError
		if !errors.As(err, &partial) || len(partial.Failed) != 1 {
			t.Fatalf("Sync returned %v; want what the packet backend refused", err)
		}
		leadsTo(t, b, "10.96.0.1:80", "10.40.1.2:80")
		leadsTo(t, b, "10.96.0.4:80", "10.40.1.1:80")
		leadsTo(t, b, "10.96.0.3:80", "")
		if prev != nil {
			leadsTo(t, b, "10.96.0.2:80", "10.40.1.1:80")
		}
	}
	base.fails = nil
	mustSync(t, b, nil, after)
	leadsTo(t, b, "10.96.0.2:80", "")
	leadsTo(t, b, "10.96.0.3:80", "10.40.1.2:80")
}

// The socket maps are read while Syncs change them (for -race), and what is read
// after the last one is as wanted.
func TestObserveAlongside(t *testing.T) {
	b := openBackend(t, testOptions(t))
	one := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"), web("goes", "10.96.0.2:80", "10.40.1.1:80"))
	two := snapshot(web("a", "10.96.0.1:80", "10.40.1.2:80"), web("comes", "10.96.0.3:80", "10.40.1.1:80"))
	mustSync(t, b, nil, one)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			if _, _, err := b.sockets.observe(); err != nil {
				t.Error(err)
			}
		}
	}()
	for prev, want := one, two; ; prev, want = want, prev {
		mustSync(t, b, prev, want)
		select {
		case <-done:
			checkHolds(t, b, want)
			return
		default:
		}
	}
}

// A Sync waits for no Observe, whichever layer is being read; and the Syncer may
// rely on that if the packet backend says so.
func TestSyncsWaitForNoObserve(t *testing.T) {
	b := openBackend(t, testOptions(t))
	base := b.Backend.(*memory)
	for _, alongside := range []bool{false, true} {
		base.traits.ObservesAlongside = alongside
		if got := dataplane.TraitsOf(b).ObservesAlongside; got != alongside {
			t.Errorf("it says that it observes alongside: %t; its packet backend says %t", got, alongside)
		}
	}
	one, two := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")), snapshot(web("a", "10.96.0.1:80", "10.40.1.2:80"))
	mustSync(t, b, nil, one)
	for name, hold := range map[string]*func(){"the packet backend": &base.observing, "the socket maps": &b.sockets.reading} {
		began, goOn, observed := make(chan struct{}), make(chan struct{}), make(chan error)
		*hold = func() {
			close(began)
			<-goOn
		}
		go func() {
			_, err := b.Observe(t.Context())
			observed <- err
		}()
		<-began
		synced := make(chan error)
		go func() { synced <- b.Sync(t.Context(), one, two) }()
		select {
		case err := <-synced:
			if err != nil {
				t.Errorf("%s: Sync returned %v", name, err)
			}
			leadsTo(t, b, "10.96.0.1:80", "10.40.1.2:80")
		case <-time.After(20 * time.Second):
			t.Errorf("%s: a Sync waits for the Observe", name)
			close(goOn)
			_, _ = <-synced, <-observed
			return
		}
		close(goOn)
		if err := <-observed; err != nil {
			t.Errorf("%s: Observe returned %v", name, err)
		}
		*hold = nil
		mustSync(t, b, two, one)
	}
}

// Programs are at cgroup hooks and nowhere else: no packet passes one of ours, on
// no device that there is or comes.
func TestNoProgramIsOnADevice(t *testing.T) {
	b := openBackend(t, testOptions(t))
	pod := startPod(t)
	addVeth(t, "before", pod)
	mustSync(t, b, nil, snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")))
	addVeth(t, "after", pod)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	ours := map[ebpf.ProgramID]bool{}
	for name, p := range b.sockets.programs.Collection.Programs {
		if p.Type() != ebpf.CGroupSockAddr {
			t.Errorf("%s is of type %s", name, p.Type())
		}
		id, _ := programs.ProgramID(p)
		ours[id] = true
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
			t.Errorf("%s has an XDP program", l.Attrs().Name)
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
			if err == nil && len(found.Programs) > 0 { // kernels before 6.6 have no tcx
				t.Errorf("%s has %d programs at %s", l.Attrs().Name, len(found.Programs), at)
			}
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" || q.Type() == "ingress" {
				t.Errorf("%s has a qdisc %s", l.Attrs().Name, q.Type())
			}
		}
	}
	all := new(link.Iterator)
	defer all.Close()
	for all.Next() {
		if info, err := all.Link.Info(); err == nil && ours[info.Program] && info.Type != link.CgroupType {
			t.Errorf("a program of ours is at a link of type %d", info.Type)
		}
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		t.Error(err)
	}
}

// addVeth makes a device whose other end is in a pod.
func addVeth(t *testing.T, name string, pod podProcess) {
	t.Helper()
	out, err := exec.Command("ip", "link", "add", name, "up", "type", "veth", "peer", "name", name, "netns", fmt.Sprint(pod.pid)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
}

// A family that the packet backend could not program stays in the socket maps as
// it was, but for what goes.
func TestSocketsKeepAFamilyThatFailed(t *testing.T) {
	b := openBackend(t, testOptions(t))
	base := b.Backend.(*memory)
	before := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"), web("goes", "10.96.0.2:80", "10.40.1.1:80"))
	after := snapshot(web("a", "10.96.0.1:80", "10.40.1.2:80"), web("comes", "10.96.0.3:80", "10.40.1.1:80"))
	mustSync(t, b, nil, before)
	base.fails = &dataplane.FamilyError{Failed: []dataplane.FamilyFailure{{Family: dataplane.IPv4, Err: errors.New("spoiled")}}}
	var failed *dataplane.FamilyError
	if err := b.Sync(t.Context(), before, after); !errors.As(err, &failed) {
		t.Fatalf("Sync returned %v; want what the packet backend says", err)
	}
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	leadsTo(t, b, "10.96.0.2:80", "")
	leadsTo(t, b, "10.96.0.3:80", "")
	base.fails = nil
	mustSync(t, b, before, after)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.2:80")
	leadsTo(t, b, "10.96.0.3:80", "10.40.1.1:80")
	checkHolds(t, b, after)
}

// A Service that goes is gone from the sockets before the packet backend loses
// it, and one that comes is in the packet backend first.
func TestSocketsNeverKnowMoreThanThePacketBackend(t *testing.T) {
	b := openBackend(t, testOptions(t))
	base := b.Backend.(*memory)
	before := snapshot(web("goes", "10.96.0.1:80", "10.40.1.1:80"), web("stays", "10.96.0.2:80", "10.40.1.1:80"), web("moves", "10.96.0.3:80", "10.40.1.1:80"))
	after := snapshot(web("comes", "10.96.0.4:80", "10.40.1.1:80"), web("stays", "10.96.0.2:80", "10.40.1.2:80"), web("moved", "10.96.0.3:80", "10.40.1.3:80"))
	for _, known := range []bool{true, false} {
		base.during = nil
		mustSync(t, b, nil, before)
		base.during = func() {
			leadsTo(t, b, "10.96.0.1:80", "")
			leadsTo(t, b, "10.96.0.2:80", "10.40.1.1:80")
			leadsTo(t, b, "10.96.0.3:80", "10.40.1.1:80")
			leadsTo(t, b, "10.96.0.4:80", "")
		}
		prev := before
		if !known {
			prev = nil
		}
		mustSync(t, b, prev, after)
		leadsTo(t, b, "10.96.0.2:80", "10.40.1.2:80")
		leadsTo(t, b, "10.96.0.3:80", "10.40.1.3:80")
		leadsTo(t, b, "10.96.0.4:80", "10.40.1.1:80")
	}
}

// If the packet backend fails, the sockets translate to nothing new.
func TestSocketsWaitForThePacketBackend(t *testing.T) {
	b := openBackend(t, testOptions(t))
	base := b.Backend.(*memory)
	before, after := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")), snapshot(web("a", "10.96.0.1:80", "10.40.1.2:80"))
	mustSync(t, b, nil, before)
	base.fails = errors.New("the kernel is busy")
	if err := b.Sync(t.Context(), before, after); !errors.Is(err, base.fails) {
		t.Fatalf("Sync returned %v", err)
	}
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
	base.fails = nil
	mustSync(t, b, nil, after)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.2:80")
}

// If the socket maps cannot be written, sockets are left to packets, which are
// served as wanted, and the next Sync tries again.
func TestSocketsStepAsideWhenTheyFail(t *testing.T) {
	b := openBackend(t, testOptions(t))
	base := b.Backend.(*memory)
	before, after := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")), snapshot(web("a", "10.96.0.1:80", "10.40.1.2:80"))
	mustSync(t, b, nil, before)
	slots := b.sockets.maps.slots
	small, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 1, ValueSize: 1, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = small.Close() }()
	b.sockets.maps.slots = small
	for _, base.fails = range []error{nil, &dataplane.PartialError{Failed: []dataplane.PortError{{ID: after.Ports.Get(web("a", "10.96.0.1:80", "10.40.1.1:80").ID).ID, Err: errors.New("no")}}}} {
		if err := b.Sync(t.Context(), before, after); err != base.fails { //nolint:errorlint // the very error
			t.Errorf("Sync returned %v; want what the packet backend says: %v", err, base.fails)
		}
	}
	base.fails = nil
	checkTrouble(t, b, true)
	if base.held != after {
		t.Error("the packet backend was held up")
	}
	leadsTo(t, b, "10.96.0.1:80", "")
	b.sockets.maps.slots = slots
	mustSync(t, b, nil, after)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.2:80")
	checkHolds(t, b, after)
	checkTrouble(t, b, false)
}

// If sockets cannot even be left to packets, the Sync has failed.
func TestSocketsThatGoOnAreAnError(t *testing.T) {
	b := openBackend(t, testOptions(t))
	before, after := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80")), snapshot(web("a", "10.96.0.1:80", "10.40.1.2:80"))
	mustSync(t, b, nil, before)
	small, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 1, ValueSize: 1, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = small.Close() }()
	slots, settings := b.sockets.maps.slots, b.sockets.maps.settings
	b.sockets.maps.slots, b.sockets.maps.settings = small, small
	if err := b.Sync(t.Context(), before, after); err == nil || !strings.Contains(err.Error(), "go on") {
		t.Errorf("Sync returned %v; want an error that says that sockets go on", err)
	}
	b.sockets.maps.slots, b.sockets.maps.settings = slots, settings
	mustSync(t, b, nil, after)
	leadsTo(t, b, "10.96.0.1:80", "10.40.1.2:80")
}

// checkTrouble checks that everybody who asks hears whether sockets are left to
// packets because they cannot be translated.
func checkTrouble(t *testing.T, b *accelerated, want bool) {
	t.Helper()
	o, err := b.Observe(t.Context())
	counts, countErr := b.Counts()
	if err != nil || countErr != nil {
		t.Fatal(err, countErr)
	}
	if got := strings.Contains(fmt.Sprint(o.Other), leftTrouble); got != want || want && b.Undisturbed() {
		t.Errorf("Observe tells of trouble %t, want %t: %q", got, want, o.Other)
	}
	for _, c := range counts {
		if c.Name == "switchyard_sockets_aside" && (c.Value == 1) != want {
			t.Errorf("%s is %v", c.Name, c.Value)
		}
	}
	if got := b.Sockets().Reason != ""; got != want {
		t.Errorf("status says %q", b.Sockets().Reason)
	}
	if w := b.SocketsOf(netip.MustParseAddr("10.40.1.9")); w.AtSocket == want {
		t.Errorf("explain says %+v", w)
	}
}

// An address that becomes the node's own is left to packets, and translated again
// once it is not, though the Service does not change.
func TestBoundAddressesComeAndGo(t *testing.T) {
	b := openBackend(t, testOptions(t))
	free := snapshot(web("dns", "10.96.0.10:53", "10.40.1.1:53"), web("other", "10.96.0.11:53", "10.40.1.1:53"))
	taken := *free
	node := *free.Node
	node.Bound = []netip.Prefix{netip.MustParsePrefix("10.96.0.10/32")}
	taken.Node = &node
	mustSync(t, b, nil, free)
	leadsTo(t, b, "10.96.0.10:53", "10.40.1.1:53")
	for range 2 {
		mustSync(t, b, free, &taken)
		leadsTo(t, b, "10.96.0.10:53", "")
		leadsTo(t, b, "10.96.0.11:53", "10.40.1.1:53")
		if left := b.Sockets().LeftPorts[leftBound]; left != 1 {
			t.Errorf("%d Service ports are left to packets for their address, want 1", left)
		}
		checkHolds(t, b, &taken)
		mustSync(t, b, &taken, free)
		leadsTo(t, b, "10.96.0.10:53", "10.40.1.1:53")
		checkHolds(t, b, free)
	}
}

// Without sockets there is the packet backend alone, and what another agent's
// sockets left is removed once it serves.
func TestSocketsOfAnEarlierAgentAreRemoved(t *testing.T) {
	o := testOptions(t)
	off := o
	off.SocketLB = Off
	for name, d := range map[string]dataplane.Driver{"off": testDriver(off), "unset": WithoutSockets(Options{PinDir: o.PinDir}, inMemory())} {
		b := openBackend(t, o)
		want := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"))
		mustSync(t, b, nil, want)
		leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
		opened, err := d.Open(t.Context(), testConfig())
		if err != nil {
			t.Fatal(err)
		}
		plain := opened.(*accelerated)
		base := plain.Backend.(*memory)
		base.fails = errors.New("the kernel is busy")
		if err := plain.Sync(t.Context(), nil, want); !errors.Is(err, base.fails) {
			t.Errorf("%s: Sync returned %v", name, err)
		}
		leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80") // nobody else serves yet
		base.fails = &dataplane.PartialError{Failed: []dataplane.PortError{{ID: web("b", "10.96.0.2:80", "10.40.1.1:80").ID, Err: errors.New("no")}}}
		if err := plain.Sync(t.Context(), nil, want); !errors.Is(err, base.fails) {
			t.Errorf("%s: Sync returned %v", name, err)
		}
		leadsTo(t, b, "10.96.0.1:80", "")
		if left, err := programs.SchemasIn(o.PinDir); err != nil || len(left) > 0 {
			t.Errorf("%s: %q are left, %v", name, left, err)
		}
		if plain.Sockets() != nil || plain.SocketsOf(netip.MustParseAddr("10.40.1.9")).AtSocket {
			t.Errorf("%s: it says that sockets are translated", name)
		}
		if got := fmt.Sprint(plain.Layers()); got != "[memory]" {
			t.Errorf("%s: it uses %s", name, got)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The first packet backend that works is taken; if none does, the error names all.
func TestAccelerateTakesTheFirstThatWorks(t *testing.T) {
	o := testOptions(t)
	lacking := inMemory()
	lacking.Name = "lacking"
	lacking.Open = func(context.Context, dataplane.Config) (dataplane.Backend, error) {
		return nil, fmt.Errorf("the kernel has no such thing: %w", dataplane.ErrUnsupported)
	}
	d := Accelerate("ebpf", o, lacking, inMemory())
	if err := d.Probe(t.Context(), testConfig()); err != nil {
		t.Errorf("Probe: %v", err)
	}
	opened, err := d.Open(t.Context(), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(opened.(dataplane.Layered).Layers()); got != "[sockets memory]" {
		t.Errorf("it uses %s", got)
	}
	if err := opened.Close(); err != nil {
		t.Error(err)
	}
	none := Accelerate("ebpf", o, lacking)
	_, err = none.Open(t.Context(), testConfig())
	for _, err := range []error{err, none.Probe(t.Context(), testConfig())} {
		if !errors.Is(err, dataplane.ErrUnsupported) || !strings.Contains(err.Error(), "backend lacking") {
			t.Errorf("without one that works: %v", err)
		}
	}
}

// watched is a packet backend that says when somebody changed what it wrote.
type watched struct {
	memory
	disturbed   chan struct{}
	undisturbed bool
}

// Disturbed implements dataplane.Watched.
func (w *watched) Disturbed() <-chan struct{} { return w.disturbed }

// Undisturbed implements dataplane.Watched.
func (w *watched) Undisturbed() bool { return w.undisturbed }

// What a packet backend can tell of changes, the accelerated one tells as well,
// and no audit is left out while the socket maps differ.
func TestDisturbancesOfThePacketBackendAreTold(t *testing.T) {
	b := openBackend(t, testOptions(t))
	if b.Undisturbed() {
		t.Error("it says that nobody changed what its packet backend wrote, which does not know")
	}
	w := &watched{disturbed: make(chan struct{}, 1), undisturbed: true}
	b.lookout.close()
	b.Backend, b.lookout = w, startLookout(w.disturbed)
	want := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"))
	mustSync(t, b, nil, want)
	w.disturbed <- struct{}{}
	<-b.Disturbed()
	if !b.Undisturbed() {
		t.Error("it is disturbed, and nothing was changed")
	}
	if err := b.sockets.maps.frontends.Delete(keysIn(t, b.sockets.maps.frontends)[0]); err != nil {
		t.Fatal(err)
	}
	if b.Undisturbed() {
		t.Error("an element of the socket maps is missing, and no audit would find it")
	}
	mustSync(t, b, nil, want)
	w.undisturbed = false
	if b.Undisturbed() {
		t.Error("the packet backend is disturbed, and it says nothing")
	}
}

// TestDetachedHookIsNoticed: whoever detaches a hook, or removes its pin, is
// noticed within 2 s, once, and after a repair again.
func TestDetachedHookIsNoticed(t *testing.T) {
	b := openBackend(t, testOptions(t))
	want := snapshot(web("a", "10.96.0.1:80", "10.40.1.1:80"))
	mustSync(t, b, nil, want)
	noticed := func() bool {
		select {
		case <-b.Disturbed():
			return true
		case <-time.After(2 * lookEvery):
			return false
		}
	}
	if noticed() {
		t.Error("what we attached ourselves disturbs us")
	}
	path := filepath.Join(b.sockets.programs.Dirs.Links, "sock_connect4")
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"detached", func() error {
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return err
			}
			return errors.Join(l.Detach(), l.Close())
		}},
		{"unpinned", func() error { return os.Remove(path) }},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if !noticed() {
			t.Errorf("%s: nobody notices", c.what)
		}
		if noticed() {
			t.Errorf("%s: told twice", c.what)
		}
		mustSync(t, b, nil, want)
		leadsTo(t, b, "10.96.0.1:80", "10.40.1.1:80")
		if noticed() {
			t.Errorf("%s: the repair disturbs us", c.what)
		}
	}
}
