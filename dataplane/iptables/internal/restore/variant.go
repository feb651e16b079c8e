package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
)

// Variant is which of the two kernel interfaces iptables programs write to.
// Rules of both are in force at once and neither sees the other's, so all
// programs of a node should use the same one.
type Variant string

// The variants.
const (
	NFT    Variant = "nft"
	Legacy Variant = "legacy"
)

// auto picks the variant where none is configured: the one that kubelet uses, then the
// one in which chain own is in the nat table, then the system's.
func auto(ctx context.Context, families []dataplane.Family, own string) (Variant, string, error) {
	for _, v := range []Variant{NFT, Legacy} {
		if chain := findChain(ctx, v, families, Mangle, hints()); chain != "" {
			return v, "kubelet's chain " + chain + " is there", nil
		}
	}
	for _, v := range []Variant{NFT, Legacy} {
		if findChain(ctx, v, families, NAT, []string{own}) != "" {
			return v, "an earlier Switchyard left chains there", nil
		}
	}
	path, err := exec.LookPath("iptables")
	if err != nil {
		return "", "", fmt.Errorf("%w: iptables is not installed: %w", dataplane.ErrUnsupported, err)
	}
	v, version, err := variantOf(ctx, path)
	if err != nil {
		return "", "", err
	}
	return v, fmt.Sprintf("it is the system's default: %s is %s", path, version), nil
}

// Other returns the other variant.
func (v Variant) Other() Variant {
	if v == NFT {
		return Legacy
	}
	return NFT
}

// hints are chains that kubelet makes in the mangle table for this very
// question; it knows the host's own choice better than a container does.
func hints() []string { return []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"} }

// findChain returns a chain of one of these names in a table of a variant, in any
// family. What cannot be read holds none.
func findChain(ctx context.Context, v Variant, families []dataplane.Family, table string, names []string) string {
	for _, f := range families {
		if _, err := Find(ctx, v, f, 0); err != nil {
			continue
		}
		var found []string
		if v == NFT {
			found = nftChains(f, table, names)
		} else {
			found, _ = legacyChains(ctx, f, func(chain string) bool { return slices.Contains(names, chain) }, []string{table})
		}
		if len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

// nftChains returns those of some chains that a table has. It asks for each by its
// name, as a list that is read while others write may lack one.
func nftChains(f dataplane.Family, table string, names []string) []string {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		_, err := c.ListChain(&nftables.Table{Family: nftFamily(f), Name: table}, name)
		return err != nil
	})
}

func nftFamily(f dataplane.Family) nftables.TableFamily {
	if f == dataplane.IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// Chains returns the names of chains in some tables, those that owns reports. It changes
// nothing, and loads no module of legacy iptables.
//
// For nft it asks the kernel. iptables-nft-save would read all rules first, which takes a
// second with 10,000 Services.
func Chains(ctx context.Context, v Variant, f dataplane.Family, owns func(chain string) bool, tables ...string) ([]string, error) {
	if v == Legacy {
		return legacyChains(ctx, f, owns, tables)
	}
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftFamily(f))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil // this kernel has no nftables
	}
	var out []string
	for _, chain := range chains {
		if slices.Contains(tables, chain.Table.Name) && owns(chain.Name) {
			out = append(out, chain.Name)
		}
	}
	return out, err
}

func legacyChains(ctx context.Context, f dataplane.Family, owns func(chain string) bool, tables []string) ([]string, error) {
	if len(xtables.LegacyTables(f)) == 0 {
		return nil, nil
	}
	c, err := Find(ctx, Legacy, f, 0)
	if errors.Is(err, dataplane.ErrUnsupported) {
		return nil, nil // nobody can have written any
	}
	if err != nil {
		return nil, err
	}
	held, err := c.Read(ctx, owns, tables...)
	var out []string
	for _, t := range held {
		out = slices.AppendSeq(out, maps.Keys(t.Chains))
	}
	return out, err
}

// Choose returns the variant for a mode, which is "nft", "legacy", "auto" or empty, and
// why. own is a chain that an earlier process may have left in the nat table.
func Choose(ctx context.Context, mode string, families []dataplane.Family, own string) (Variant, string, error) {
	switch mode {
	case "", "auto":
		return auto(ctx, families, own)
	case string(NFT), string(Legacy):
		return Variant(mode), "it is configured", nil
	default:
		return "", "", errors.New(`iptables mode must be "auto", "nft" or "legacy", not "` + mode + `"`)
	}
}
