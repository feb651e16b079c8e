package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

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
		if chain := findChain(ctx, v, families, "mangle", isHint); chain != "" {
			return v, "kubelet's chain " + chain + " is there", nil
		}
	}
	for _, v := range []Variant{NFT, Legacy} {
		if chain := findChain(ctx, v, families, tableNAT, isOwn); chain != "" {
			return v, "an earlier Switchyard left chains there", nil
		}
	}
	path, err := exec.LookPath("iptables")
	if err != nil {
		return "", "", fmt.Errorf("%w: iptables is not installed: %w", dataplane.ErrUnsupported, err)
	}
	v, version, err := variantOf(path)
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

// isHint tells chains that kubelet makes in the mangle table for this very
// question; it knows the host's own choice better than a container does.
func isHint(chain string) bool {
	return chain == "KUBE-IPTABLES-HINT" || chain == "KUBE-KUBELET-CANARY"
}

// findChain looks for a chain in one table of a variant, in any family. What
// cannot be read holds none.
func findChain(ctx context.Context, v Variant, families []dataplane.Family, table string, is func(string) bool) string {
	for _, f := range families {
		cmds, err := findCommands(v, f, 0)
		if err != nil || !cmds.inUse(f) {
			continue
		}
		found := ""
		err = cmds.scan(ctx, func(in string, line []byte) {
			if in != table || !bytes.HasPrefix(line, []byte(":")) {
				return
			}
			if chain, _, _ := strings.Cut(string(line[1:]), " "); is(chain) {
				found = chain
			}
		})
		if err == nil && found != "" {
			return found
		}
	}
	return ""
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
