package ipvs

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/moby/ipvs"

	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// setting is a kernel setting that IPVS needs, and why.
type setting struct {
	name     string
	value    int
	optional bool // some kernels do not have it
}

func (o Options) settings() []setting {
	all := []setting{
		{"net/ipv4/vs/conntrack", 1, false},                 // or nothing could be masqueraded
		{"net/ipv4/vs/expire_nodest_conn", 1, false},        // a flow whose endpoint is gone gets another
		{"net/ipv4/vs/expire_quiescent_template", 1, false}, // so does a persistent client's
		{"net/ipv4/vs/run_estimation", 0, true},             // rates cost a walk over all endpoints every 2 s; Linux 5.17
		{"net/ipv4/ip_forward", 1, false},                   // answers pass through
	}
	if o.StrictARP {
		all = append(all, setting{"net/ipv4/conf/all/arp_ignore", 1, false}, setting{"net/ipv4/conf/all/arp_announce", 2, false})
	}
	return all
}

// applySettings writes what is not yet so.
func (b *backend) applySettings() error {
	for _, s := range b.options.settings() {
		err := sysctl.Proc.SetInt(s.name, s.value)
		if err != nil && (!s.optional || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return b.applyTimeouts()
}

// applyTimeouts sets the timeouts that were asked for.
func (b *backend) applyTimeouts() error {
	want := ipvs.Config{TimeoutTCP: b.options.TCPTimeout, TimeoutTCPFin: b.options.TCPFinTimeout, TimeoutUDP: b.options.UDPTimeout}
	if want == (ipvs.Config{}) {
		return nil
	}
	have, err := b.kernel.ipvs.GetConfig()
	if err != nil {
		return fmt.Errorf("reading the IPVS timeouts: %w", err)
	}
	same := (want.TimeoutTCP == 0 || want.TimeoutTCP == have.TimeoutTCP) &&
		(want.TimeoutTCPFin == 0 || want.TimeoutTCPFin == have.TimeoutTCPFin) &&
		(want.TimeoutUDP == 0 || want.TimeoutUDP == have.TimeoutUDP)
	if same {
		return nil
	}
	if err := b.kernel.ipvs.SetConfig(&want); err != nil {
		return fmt.Errorf("setting the IPVS timeouts: %w", err)
	}
	return nil
}
