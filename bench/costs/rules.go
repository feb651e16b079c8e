package costs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// packet is a first packet whose way through the rules is counted.
type packet struct {
	what string
	from *netlab.Host
	to   netip.AddrPort
}

func (c *counted) packets() []packet {
	service := netip.AddrPortFrom(netip.MustParseAddr(askedAddr), askedPort)
	return []packet{
		{"to a ClusterIP from a pod", c.node.Pods[0], service},
		{"to a ClusterIP from the node", c.node.Host, service},
		{"to a NodePort from outside", c.lab.Clients[0], netip.AddrPortFrom(c.node.Addr(4), nodePort)},
		{"to a pod from a pod", c.node.Pods[0], netip.AddrPortFrom(c.node.Pods[1].Addr(4), servedPort)},
	}
}

// tracedTable is the bench's own: it marks what the kernel is to trace.
const tracedTable = "switchyard-costs"

// rules counts the rules that the kernel tries on the first packet of a connection.
// Sockets translate before there is a packet, and legacy iptables is traced in
// another way, so that both are left out.
func (c *counted) rules() error {
	if c.name == nameEBPF {
		return nil
	}
	return c.tracing(func() error {
		for _, p := range c.packets() {
			n, err := c.tried(p)
			if err != nil {
				return fmt.Errorf("tracing a packet %s: %w", p.what, err)
			}
			c.add(Cost{What: "rules tried on a first packet " + p.what, Unit: "rules", Value: float64(n)})
		}
		return nil
	})
}

// tracing makes the node's kernel trace the packets to come during do.
func (c *counted) tracing(do func() error) (err error) {
	commands := "add table ip " + tracedTable
	for _, hook := range []string{"prerouting", "output"} {
		at := "ip " + tracedTable + " " + hook
		commands += fmt.Sprintf("; add chain %s { type filter hook %s priority -500; }; add rule %s udp dport { %d, %d, %d } meta nftrace set 1",
			at, hook, at, askedPort, nodePort, servedPort)
	}
	if _, err := c.node.Run(c.ctx, "nft", commands); err != nil {
		return err
	}
	defer func() {
		_, removeErr := c.node.Run(c.ctx, "nft", "delete table ip "+tracedTable)
		err = errors.Join(err, removeErr)
	}()
	return do()
}

// tried sends a packet and counts the rules that were tried on it.
func (c *counted) tried(p packet) (n int, err error) {
	var tracer *tracer
	if err := c.node.Do(func() error { tracer, err = openTracer(); return err }); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, tracer.close()) }()
	answer, err := p.from.Ask(netlab.Request{Protocol: netlab.UDP, To: p.to, Timeout: netlab.Patient(answerTime)})
	if err != nil {
		return 0, err
	}
	if answer.Outcome != netlab.Answered {
		return 0, fmt.Errorf("it was not answered: %s", answer)
	}
	steps, err := tracer.steps()
	if err != nil {
		return 0, err
	}
	if len(steps) == 0 {
		return 0, errors.New("the kernel traced nothing")
	}
	rules := map[chainName][]uint64{}
	for _, s := range steps {
		for _, name := range []chainName{s.at, s.target()} {
			if _, known := rules[name]; known || name.chain == "" {
				continue
			}
			if rules[name], err = tracer.handles(name); err != nil {
				return 0, err
			}
		}
	}
	return walked(steps, rules)
}

// chainName names a chain.
type chainName struct {
	family       uint8
	table, chain string
}

// step is what the kernel says of a packet: that a rule matched, with this verdict,
// that a chain ended, or that a base chain's policy took it.
type step struct {
	at     chainName
	kind   uint32 // NFT_TRACETYPE_*
	handle uint64 // of the rule; 0: the chain ended
	code   int32  // of the verdict
	to     string // the chain that the verdict leads to
}

// stepPolicy is the kind of a step in which a base chain's policy takes the packet.
const stepPolicy = 1

// The verdicts after which the rules of a packet's hook go on (NFT_*).
const (
	verdictJump   = -3
	verdictGoto   = -4
	verdictReturn = -5
)

// target returns the chain that a step leads to; its name is "" if it leads to none.
func (s step) target() chainName { return chainName{s.at.family, s.at.table, s.to} }

// place is how far the rules of a chain have been tried.
type place struct {
	chain chainName
	next  int
}

// way is a packet's way through chains.
type way struct {
	rules map[chainName][]uint64 // the handles of each chain's rules, in order
	stack []place                // the last is where the packet is
	tried int                    // rules
}

// walked counts the rules that were tried. The kernel reports those that matched;
// a rule before one of them in its chain was tried and did not match.
func walked(steps []step, rules map[chainName][]uint64) (int, error) {
	w := way{rules: rules}
	for _, s := range steps {
		if s.at.table == tracedTable {
			continue
		}
		if err := w.take(s); err != nil {
			return 0, err
		}
	}
	w.leave()
	return w.tried, nil
}

// take goes on by one step.
func (w *way) take(s step) error {
	w.enter(s.at)
	top := &w.stack[len(w.stack)-1]
	if s.kind == stepPolicy {
		w.leave()
		return nil
	}
	if s.handle == 0 { // the end of the chain
		w.finish(top)
		return nil
	}
	at := slices.Index(w.rules[s.at][top.next:], s.handle)
	if at < 0 {
		return fmt.Errorf("rule %d is not where it was tried, in chain %s", s.handle, s.at.chain)
	}
	w.tried += at + 1
	top.next += at + 1
	switch {
	case s.code == verdictReturn:
		top.next = len(w.rules[s.at])
	case s.code == verdictJump:
		w.stack = append(w.stack, place{chain: s.target()})
	case s.code == verdictGoto:
		*top = place{chain: s.target()}
	case s.code >= 0: // the verdict of the hook
		w.stack = nil
	}
	return nil
}

// enter makes a chain the one where the packet is: the packet came back to it from
// those above it, or another hook begins.
func (w *way) enter(c chainName) {
	if !slices.ContainsFunc(w.stack, func(p place) bool { return p.chain == c }) {
		w.leave()
		w.stack = []place{{chain: c}}
	}
	for w.stack[len(w.stack)-1].chain != c {
		w.finish(&w.stack[len(w.stack)-1])
		w.stack = w.stack[:len(w.stack)-1]
	}
}

// leave ends a hook: the rest of each chain was tried and did not match.
func (w *way) leave() {
	for i := range w.stack {
		w.finish(&w.stack[i])
	}
	w.stack = nil
}

// finish tries the rest of a chain.
func (w *way) finish(p *place) {
	w.tried += len(w.rules[p.chain]) - p.next
	p.next = len(w.rules[p.chain])
}
