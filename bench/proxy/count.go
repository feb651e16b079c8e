package proxy

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// counter tells how many connections and flows a proxy has sent to an endpoint,
// as the kernel counts them. They prove which way requests went.
type counter func(*Proxy) (float64, error)

// Begin starts to count.
func (p *Proxy) Begin() (err error) {
	p.before = 0
	// What netfilter translates it remembers: what is remembered afterwards is new.
	if err := p.ForgetFlows(); err != nil {
		return err
	}
	p.before, err = p.counter(p)
	return err
}

// ForgetFlows empties the conntrack table of the proxy's node.
func (p *Proxy) ForgetFlows() error {
	if err := p.Node.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		return fmt.Errorf("emptying the conntrack table of %s: %w", p.Name, err)
	}
	return nil
}

// Counted is how many connections and flows went through the proxy since Begin.
func (p *Proxy) Counted() (float64, error) {
	now, err := p.counter(p)
	return now - p.before, err
}

// Prove sees that connections since Begin went through the proxy, or past it
// where that is the point. A few may have reused the entry that is counted.
func (p *Proxy) Prove(connections int) error {
	const share = 0.8
	n, err := p.Counted()
	switch {
	case err != nil:
		return err
	case !p.Translates() && n != 0:
		return fmt.Errorf("%.0f of %d connections were translated on the way straight to the pod", n, connections)
	case p.Translates() && n < share*float64(connections):
		return fmt.Errorf("of %d connections just %.0f went through the proxy, as the kernel counts", connections, n)
	}
	return nil
}

// natted counts conntrack entries whose answers come from elsewhere than where
// the requests were sent. So it does for IPVS, whose own counters stand still
// where nobody wants its estimates (run_estimation).
func natted(p *Proxy) (float64, error) {
	n := 0
	err := p.Node.Do(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // an incomplete count proves as much
				return err
			}
			for _, f := range flows {
				if !f.Forward.DstIP.Equal(f.Reverse.SrcIP) || f.Forward.DstPort != f.Reverse.SrcPort {
					n++
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("reading the conntrack table of %s: %w", p.Name, err)
	}
	return float64(n), nil
}

// forwardedByEBPF counts what sockets were translated to, and what was left to
// the packet backend.
func forwardedByEBPF(p *Proxy) (float64, error) {
	all, err := p.Metrics()
	if err != nil {
		return 0, err
	}
	packets, err := natted(p)
	return packets + all.Sum("switchyard_ebpf_events_total", `event="forwarded"`), err
}
