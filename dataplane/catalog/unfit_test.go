package catalog

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
)

// TestOfMachine tells errors that every later try gives again from those that
// may pass, or that are of one Service alone.
func TestOfMachine(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{dataplane.ErrUnsupported, true},
		{fmt.Errorf("writing net.ipv4.forwarding: %w", unix.EROFS), true},
		{errors.Join(errors.New("IPv4: busy"), fmt.Errorf("IPv6: %w", unix.EAFNOSUPPORT)), true},
		{unix.EPERM, true}, {unix.EACCES, true}, {unix.ENOSYS, true}, {unix.EOPNOTSUPP, true}, {unix.EPROTONOSUPPORT, true}, {unix.ENOPROTOOPT, true},
		{unix.ENOBUFS, false}, {unix.EBUSY, false}, {unix.EAGAIN, false}, {unix.ENOMEM, false}, {unix.EINTR, false},
		{errors.New("another program holds the xtables lock"), false},
		{&dataplane.PartialError{Failed: []dataplane.PortError{{Err: unix.EOPNOTSUPP}}}, false},
	} {
		if got := OfMachine(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// TestUnfitLayers: what proved unfit fails with the reason, and so does each
// backend that cannot do without it.
func TestUnfitLayers(t *testing.T) {
	why := errors.New("its first Sync failed")
	for _, c := range []struct {
		layer string
		fails []string
	}{
		{"nftables", []string{"nftables"}}, // ebpf has another base
		{"iptables", []string{"iptables"}},
		{"ipvs", []string{"ipvs"}},
		{ebpf.LayerName, []string{nameEBPF}}, // packet backends serve without
	} {
		for _, mode := range []ebpf.SocketLB{"", ebpf.Auto} {
			for _, d := range Drivers(Options{EBPF: ebpf.Options{SocketLB: mode}, Unfit: map[string]error{c.layer: why}}) {
				want := d.Name == c.fails[0]
				if mode != "" && d.Name == c.layer { // sockets are on top: the error says more
					continue
				}
				if err := d.Works(t.Context(), dataplane.Config{}); errors.Is(err, why) != want {
					t.Errorf("layer %s, --socket-lb=%s: backend %s: %v", c.layer, mode, d.Name, err)
				}
			}
		}
	}
}
