package takeover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Find returns what a kube-proxy of any mode left in the kernel, in a line each.
// It changes nothing. It looks for ipsets only if it found something else: by
// themselves they do nothing, and the library logs each element of others' sets.
func (k KubeProxy) Find(ctx context.Context) ([]string, error) {
	out, err := k.FindChains(ctx, ownsChain)
	errs := []error{err}
	for _, look := range []func() ([]string, error){findTables, findDevice} {
		found, err := look()
		out, errs = append(out, found...), append(errs, err)
	}
	if len(out) > 0 {
		sets, err := findSets()
		out, errs = append(out, sets...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func findTables() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	var out []string
	for family, name := range map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"} {
		_, err := c.ListTableOfFamily(nftTable, family)
		switch {
		case err == nil:
			out = append(out, "nftables table "+name+" "+nftTable)
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) &&
			!errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EINVAL):
			return out, fmt.Errorf("looking for the nftables table %s %s: %w", name, nftTable, err)
		}
	}
	return out, nil
}

func findDevice() ([]string, error) {
	_, err := netlink.LinkByName(device)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the device %s: %w", device, err)
	}
	return []string{"device " + device}, nil
}

func findSets() ([]string, error) {
	sets, err := netlink.IpsetListAll()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // this kernel has no ipsets
	}
	if err != nil {
		return nil, fmt.Errorf("listing ipsets: %w", err)
	}
	n := 0
	for _, s := range sets {
		if ownsSet(s.SetName) {
			n++
		}
	}
	if n == 0 {
		return nil, nil
	}
	return []string{fmt.Sprintf("%d ipsets", n)}, nil
}

// RunningError says that a kube-proxy programs this network namespace.
type RunningError struct{ PIDs []string }

func (e *RunningError) Error() string {
	return "kube-proxy runs in this network namespace (process " + strings.Join(e.PIDs, ", ") +
		") and would put everything back: stop it first"
}

// checkStopped fails while a kube-proxy runs in this network namespace, as far as
// this process sees others. A Switchyard that is called by that name is none.
func checkStopped() error {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is right
	ours, ourNetns := sameFile("/proc/self/exe"), sameFile("/proc/self/ns/net")
	var pids []string
	for _, comm := range comms {
		dir := filepath.Dir(comm)
		name, err := os.ReadFile(comm)
		if err == nil && strings.TrimSpace(string(name)) == "kube-proxy" && ourNetns(dir+"/ns/net") && !ours(dir+"/exe") {
			pids = append(pids, filepath.Base(dir))
		}
	}
	if len(pids) > 0 {
		return &RunningError{pids}
	}
	return nil
}

// sameFile returns a function that reports whether a path is the same file as
// another one. What cannot be looked at is not.
func sameFile(path string) func(string) bool {
	this, err := os.Stat(path)
	return func(other string) bool {
		that, otherErr := os.Stat(other)
		return err == nil && otherErr == nil && os.SameFile(this, that)
	}
}
