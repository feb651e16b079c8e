package ipvs

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// find returns what is there of our services and tables.
func find() ([]string, error) {
	var out []string
	n, err := countServices()
	if n > 0 {
		out = append(out, fmt.Sprintf("%d IPVS services", n))
	}
	errs := []error{err}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		t := newTable(f, &counts{})
		there, err := t.Exists()
		errs = append(errs, err, t.Close())
		if there {
			out = append(out, t.String())
		}
	}
	return out, errors.Join(errs...)
}

func countServices() (int, error) {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return 0, nil // so there are none
	}
	k, err := openKernel(&counts{})
	if err != nil {
		return 0, err
	}
	defer k.close()
	ours, err := k.ours()
	return len(ours), err
}
