package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
)

// Find returns how many chains of a program there are, those that owns tells, in
// a line for each variant and family. It changes nothing, and loads no module of
// legacy iptables.
func Find(ctx context.Context, owns func(chain string) bool) ([]string, error) {
	var out []string
	var errs []error
	for _, v := range []Variant{NFT, Legacy} {
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			count := countNFT
			if v == Legacy {
				count = countLegacy
			}
			n, err := count(ctx, f, owns)
			if err != nil {
				errs = append(errs, fmt.Errorf("looking for chains of iptables-%s, %s: %w", v, f, err))
			}
			if n > 0 {
				out = append(out, fmt.Sprintf("%d chains of iptables-%s, %s", n, v, f))
			}
		}
	}
	return out, errors.Join(errs...)
}

func countNFT(_ context.Context, f dataplane.Family, owns func(string) bool) (int, error) {
	family := nftables.TableFamilyIPv4
	if f == dataplane.IPv6 {
		family = nftables.TableFamilyIPv6
	}
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	chains, err := c.ListChainsOfTableFamily(family)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return 0, nil // this kernel has no nftables
	}
	n := 0
	for _, chain := range chains {
		if slices.Contains([]string{tableFilter, tableNAT, tableMangle}, chain.Table.Name) && owns(chain.Name) {
			n++
		}
	}
	return n, err
}

func countLegacy(ctx context.Context, f dataplane.Family, owns func(string) bool) (int, error) {
	if len(xtables.LegacyTables(f)) == 0 {
		return 0, nil
	}
	cmds, err := findCommands(ctx, Legacy, f, 0)
	if errors.Is(err, dataplane.ErrUnsupported) {
		return 0, nil // nobody can have written any
	}
	if err != nil {
		return 0, err
	}
	have := map[string]*saved{}
	for _, table := range []string{tableFilter, tableNAT, tableMangle} {
		have[table] = newSaved()
		have[table].owns = owns
	}
	err = cmds.readInto(ctx, have)
	n := 0
	for _, s := range have {
		n += len(s.chains)
	}
	return n, err
}
