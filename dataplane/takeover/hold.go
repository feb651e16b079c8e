package takeover

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// tableName is our table, in each family. It decides nothing: a chain for NAT
// keeps the kernel's NAT, and a look at the connection's state its conntrack.
const tableName = "switchyard-hold"

func table(f dataplane.Family) *nftables.Table {
	if f == dataplane.IPv6 {
		return &nftables.Table{Family: nftables.TableFamilyIPv6, Name: tableName}
	}
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
}

// Hold keeps NAT for connections under way, whose rules are about to go.
func Hold(families []dataplane.Family) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	for _, f := range families {
		t := c.AddTable(table(f))
		chain := c.AddChain(&nftables.Chain{
			Table: t, Name: "nat", Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		c.FlushChain(chain)
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("making the nftables table %s: %w", tableName, err)
	}
	return nil
}

// Release undoes Hold. What is not there is no error.
func Release(families []dataplane.Family) error {
	var errs []error
	for _, f := range families {
		c, err := nftables.New()
		if err == nil {
			c.DelTable(table(f))
			err = c.Flush()
		}
		// A kernel without nf_tables knows neither the family nor the message.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("removing the nftables table %s: %w", tableName, err))
		}
	}
	return errors.Join(errs...)
}
