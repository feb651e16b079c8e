package ipvs

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

func bothFamilies(n byte) *dataplane.Snapshot {
	var ports []*dataplane.ServicePort
	for i := range n {
		v4 := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, i + 1}), 80).String()
		v6 := netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0x96, 15: i + 1}), 80).String()
		ports = append(ports, port("four-"+v4, frontend(dataplane.ClusterIP, v4, pool("10.244.1.5:80"), dataplane.SNATNone)),
			port("six-"+v6, frontend(dataplane.ClusterIP, v6, pool("[fd00::5]:80"), dataplane.SNATNone)))
	}
	return snapshotOf(ports...)
}

func mustSync(t *testing.T, b *backend, prev, want *dataplane.Snapshot) {
	t.Helper()
	if err := b.Sync(t.Context(), prev, want); err != nil {
		t.Fatal(err)
	}
}

func mustBe(t *testing.T, b *backend, want *dataplane.Snapshot) {
	t.Helper()
	have, err := b.Observe(t.Context())
	if err != nil || !have.Whole || len(have.Differences(dataplane.Expect(want))) > 0 {
		t.Errorf("observed %v, %v", have.Differences(dataplane.Expect(want)), err)
	}
}

// TestFamilyAlone: where the kernel does not take one family's rules, the other
// family is programmed, and this one is once the kernel does.
func TestFamilyAlone(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		first, want := bothFamilies(2), bothFamilies(3)
		mustSync(t, b, nil, first)
		well, broken := b.halves[1].table, spec(dataplane.IPv6)
		broken.Name = strings.Repeat("x", 300)
		b.halves[1].table, b.halves[1].held = nft.NewTable(dataplane.IPv6, broken, &b.counts.table), nil
		var failed *dataplane.FamilyError
		if err := b.Sync(t.Context(), first, want); !errors.As(err, &failed) || len(failed.Failed) != 1 || !failed.Has(dataplane.IPv6) {
			t.Fatalf("Sync returned %v; want an error of IPv6 alone", err)
		}
		b.Hold([]dataplane.Family{dataplane.IPv6})
		inForce := *want
		inForce.Ports = dataplane.Replace(want.Ports, first.Ports, func(id dataplane.PortID) bool { return id.Family == dataplane.IPv6 })
		mustSync(t, b, nil, &inForce)
		_ = b.halves[1].table.Close()
		b.halves[1].table = well
		b.Hold(nil)
		mustSync(t, b, &inForce, want)
		mustBe(t, b, want)
	})
}

// TestObserveAlongside: the kernel is read while Syncs change it (for -race), and
// what is read after the last one is as wanted.
func TestObserveAlongside(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		prev, want := bothFamilies(100), bothFamilies(50)
		mustSync(t, b, nil, prev)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 10 {
				if _, err := b.Observe(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}()
		for {
			mustSync(t, b, prev, want)
			select {
			case <-done:
				mustBe(t, b, want)
				return
			default:
				prev, want = want, prev
			}
		}
	})
}

// TestDisturbed: it is noticed when somebody else changes our table or takes our
// services away. What we change ourselves is not, and neither are other services.
func TestDisturbed(t *testing.T) {
	inNetns(t, func() {
		b := opened(t, Options{})
		want := bothFamilies(3)
		mustSync(t, b, nil, want)
		noticed := func(within time.Duration) bool {
			select {
			case <-b.Disturbed():
				return true
			case <-time.After(within):
				return false
			}
		}
		for noticed(3 * lookEvery) { // what the first Sync did counts as another's
		}
		mustSync(t, b, want, bothFamilies(2))
		mustSync(t, b, bothFamilies(2), want)
		other := virtual(serviceKey{dataplane.TCP, netip.MustParseAddrPort("10.96.0.99:80")}, "rr")
		other.Timeout = 0
		if err := b.reader.ipvs.NewService(other); err != nil {
			t.Fatal(err)
		}
		if noticed(3 * lookEvery) {
			t.Error("our own changes, or another program's service, count as a disturbance")
		}
		for what, disturb := range map[string]func() error{
			"one service is removed": func() error {
				return b.reader.ipvs.DelService(virtual(serviceKey{dataplane.TCP, netip.MustParseAddrPort("10.96.0.1:80")}, ""))
			},
			"all services are removed": b.reader.ipvs.Flush,
			"a table is flushed":       exec.Command("nft", "flush", "table", "ip6", tableName).Run,
		} {
			if err := disturb(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if !noticed(time.Minute) {
				t.Errorf("%s, and nobody notices", what)
			}
			mustSync(t, b, nil, want)
			for noticed(3 * lookEvery) {
			}
		}
		mustBe(t, b, want)
	})
}
