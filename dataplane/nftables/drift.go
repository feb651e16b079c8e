package nftables

import (
	"github.com/switchyard-io/switchyard/dataplane/internal/localnet"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
)

// drift says in words what a Sync with prev nil would mend, had it to program
// what Syncs left. What the kernel holds is taken over.
func (l *left) drift(t *nft.Table, held *nft.State) ([]string, error) {
	d, err := whole(t, &l.node, l.ids.Look, held, l.localnet.Notes(chainInput))
	if err == nil {
		err = d.wantAll(l.held.Ports, nil)
	}
	if err != nil {
		return nil, err
	}
	out := d.Words()
	if l.node.localhost && l.localnetFailed == nil {
		if on, err := localnet.IsOn(); err == nil && !on {
			out = append(out, "net.ipv4.conf.all.route_localnet is 0, so that NodePorts do not answer on 127.0.0.1")
		}
	}
	return out, nil
}
