package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
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

// choose picks the variant for Options.Mode "auto" and says why.
func choose(ctx context.Context, families []dataplane.Family) (Variant, string, error) {
	for _, v := range []Variant{NFT, Legacy} {
		if chain := findChain(ctx, v, families, "mangle", hints()...); chain != "" {
			return v, "kubelet's chain " + chain + " is there", nil
		}
	}
	for _, v := range []Variant{NFT, Legacy} {
		if chain := findChain(ctx, v, families, tableNAT, chainServices); chain != "" {
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

func (v Variant) other() Variant {
	if v == NFT {
		return Legacy
	}
	return NFT
}

// hints are chains that kubelet makes in the mangle table for this very
// question; it knows the host's own choice better than a container does.
func hints() []string { return []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"} }

// findChain looks for a chain of one of these names in a table of a variant, in
// any family. What cannot be read holds none.
func findChain(ctx context.Context, v Variant, families []dataplane.Family, table string, names ...string) string {
	for _, f := range families {
		cmds, err := findCommands(ctx, v, f, 0)
		if err != nil || !cmds.inUse(f) {
			continue
		}
		chain := ""
		if v == NFT {
			chain = findNFTChain(f, table, names)
		} else {
			chain = cmds.findChain(ctx, table, names)
		}
		if chain != "" {
			return chain
		}
	}
	return ""
}

// findNFTChain asks the kernel for the chains. iptables-nft-save would read all
// tables first, whichever it is asked for, which takes a second with 10,000 Services.
func findNFTChain(f dataplane.Family, table string, names []string) string {
	family := nftables.TableFamilyIPv4
	if f == dataplane.IPv6 {
		family = nftables.TableFamilyIPv6
	}
	c, err := nftables.New()
	if err != nil {
		return ""
	}
	for _, name := range names {
		if _, err := c.ListChain(&nftables.Table{Family: family, Name: table}, name); err == nil {
			return name
		}
	}
	return ""
}

// findChain looks for one in what iptables-save writes.
func (c *commands) findChain(ctx context.Context, table string, names []string) string {
	found := ""
	err := c.scan(ctx, func(in string, line []byte) {
		if in != table || !bytes.HasPrefix(line, []byte(":")) {
			return
		}
		if chain, _, _ := strings.Cut(string(line[1:]), " "); slices.Contains(names, chain) {
			found = chain
		}
	})
	if err != nil {
		return ""
	}
	return found
}

// resolve makes a mode a variant.
func resolve(ctx context.Context, mode string, families []dataplane.Family) (Variant, string, error) {
	switch mode {
	case "", "auto":
		return choose(ctx, families)
	case string(NFT), string(Legacy):
		return Variant(mode), "it is configured", nil
	default:
		return "", "", errors.New(`iptables mode must be "auto", "nft" or "legacy", not "` + mode + `"`)
	}
}
