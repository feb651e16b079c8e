package takeover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device holds every Service's address in kube-proxy's ipvs mode.
const device = "kube-ipvs0"

// nftTable is kube-proxy's table, one in each family, in nftables mode.
const nftTable = "kube-proxy"

// KubeProxy finds and removes what a kube-proxy of any mode left in the kernel.
// How chains of iptables are found and removed is handed in, because takeover
// knows no backend.
type KubeProxy struct {
	// FindChains returns how many chains there are that owns picks, in a line for
	// each variant and family of iptables that has some.
	FindChains func(ctx context.Context, owns func(chain string) bool) ([]string, error)
	// RemoveChains removes the chains that owns picks and the rules that lead to
	// them. It leaves a chain to which another program's rules lead.
	RemoveChains func(ctx context.Context, log *slog.Logger, owns func(chain string) bool) error
}

// Remove removes the chains, tables, sets and the device of kube-proxy's
// iptables, nftables and ipvs modes, and nothing else. What is not there is no
// error. While a kube-proxy runs it removes nothing and fails, because that one
// would put everything back.
//
// IPVS services stay: they bear no mark of whose they are (kube-proxy's own
// cleanup removes all of the host's).
func (k KubeProxy) Remove(ctx context.Context, log *slog.Logger) error {
	if err := checkStopped(); err != nil {
		return err
	}
	// Sets cannot go before the rules that ask them.
	return errors.Join(
		k.RemoveChains(ctx, log, ownsChain),
		removeTables(ctx, log),
		removeDevice(log),
		removeSets(log),
	)
}

// ownsChain tells kube-proxy's chains by their whole names: kubelet
// (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT), kube-router
// (KUBE-POD-FW-…, KUBE-NWPLCY-…) and others have chains that start alike.
func ownsChain(chain string) bool {
	return slices.Contains([]string{
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ",
		"KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		// of ipvs mode
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}, chain) || regexp.MustCompile(`^KUBE-(SVC|SVL|SEP|FW|EXT|XLB)-[A-Z2-7]{16}$`).MatchString(chain)
}

// ownsSet tells kube-proxy's ipsets, which are those of ipvs mode. Names of
// IPv6 have a 6 in them.
func ownsSet(set string) bool {
	return slices.Contains([]string{
		"LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL",
		"LOAD-BALANCER", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-FW", "LOAD-BALANCER-SOURCE-IP", "LOAD-BALANCER-SOURCE-CIDR",
		"NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP",
		"NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS",
	}, strings.TrimPrefix(strings.TrimPrefix(set, "KUBE-"), "6-")) && strings.HasPrefix(set, "KUBE-")
}

// nftMost is how long nft may take for all tables.
const nftMost = 5 * time.Minute

// removeTables removes the tables of nftables mode.
func removeTables(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, nftMost)
	defer cancel()
	nft, err := exec.LookPath("nft")
	if err != nil {
		log.Info("nft is not installed, so tables of kube-proxy's nftables mode are not looked for")
		return nil // nothing to remove them with, and it is told
	}
	list, err := exec.CommandContext(ctx, nft, "list", "tables").CombinedOutput()
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w: %s", err, bytes.TrimSpace(list))
	}
	var errs []error
	for line := range strings.Lines(string(list)) {
		for _, family := range []string{"ip", "ip6"} {
			if strings.TrimSpace(line) != "table "+family+" "+nftTable {
				continue
			}
			log.Info("removing an nftables table", "family", family, "table", nftTable)
			// All rules go in one step. The chains' hooks go one by one, and those that
			// translate before those that reject what is not translated.
			for _, verb := range []string{"flush", "delete"} {
				if out, err := exec.CommandContext(ctx, nft, verb, "table", family, nftTable).CombinedOutput(); err != nil {
					errs = append(errs, fmt.Errorf("removing the nftables table %s %s: %w: %s", family, nftTable, err, bytes.TrimSpace(out)))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// removeDevice removes the device of ipvs mode, and with it all its addresses.
func removeDevice(log *slog.Logger) error {
	link, err := netlink.LinkByName(device)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err == nil {
		log.Info("removing a device", "device", device)
		log.Warn("the IPVS services of kube-proxy stay, as nothing tells them from others'",
			"remedy", "ipvsadm --clear, if this host has no others")
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing the device %s: %w", device, err)
	}
	return nil
}

// removeSets removes the ipsets of ipvs mode.
func removeSets(log *slog.Logger) error {
	sets, err := netlink.IpsetListAll()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		log.Debug("this kernel has no ipsets", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing ipsets: %w", err)
	}
	var errs []error
	for _, s := range sets {
		if !ownsSet(s.SetName) {
			continue
		}
		log.Info("removing an ipset", "set", s.SetName)
		if err := netlink.IpsetDestroy(s.SetName); err != nil {
			errs = append(errs, fmt.Errorf("removing the ipset %s: %w", s.SetName, err))
		}
	}
	return errors.Join(errs...)
}
