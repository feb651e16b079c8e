package show

import (
	"fmt"
	"strings"

	"github.com/switchyard-io/switchyard/agent/inspect"
)

// Services prints one line for each port of each Service and family.
func (p *Printer) Services(s inspect.Services) error {
	rows := [][]string{{"NAMESPACE", "SERVICE", "PORT", "PROTOCOL", "FAMILY", "FRONTENDS", "ENDPOINTS", "CONNECTIONS"}}
	for _, svc := range s.Services {
		used := 0
		for _, e := range svc.Endpoints {
			if len(e.UsedBy) > 0 {
				used++
			}
		}
		connections := "-"
		if s.Counted != "" {
			sum := uint64(0)
			for _, e := range svc.Endpoints {
				sum += deref(e.Connections)
			}
			connections = fmt.Sprint(sum)
		}
		rows = append(rows, []string{svc.Namespace, svc.Name, orDash(svc.Port), svc.Protocol, svc.Family, addresses(svc.Frontends),
			fmt.Sprintf("%d of %d", used, len(svc.Endpoints)), connections})
	}
	if len(s.Services) == 0 {
		p.line("There are no Services.")
		return p.err
	}
	p.table("", rows)
	p.counted(s)
	return p.err
}

// counted says which connections are counted, where not all are.
func (p *Printer) counted(s inspect.Services) {
	if s.Counted != "" && s.Counted != "all" {
		p.line("\nConnections are counted: %s.", s.Counted)
	}
}

// ServicesWide prints each port with all of its endpoints.
func (p *Printer) ServicesWide(s inspect.Services) error {
	for i, svc := range s.Services {
		if i > 0 {
			p.line("")
		}
		p.service(svc)
		p.endpoints("  ", svc.Endpoints)
	}
	if len(s.Services) == 0 {
		p.line("There are no Services.")
	}
	p.counted(s)
	return p.err
}

func (p *Printer) service(svc inspect.Service) {
	p.line("%s", p.paint(bold, fmt.Sprintf("%s/%s, %s", svc.Namespace, svc.Name, portName(svc))))
	for _, f := range svc.Frontends {
		said := fmt.Sprintf("  %-12s  %s", f.Kind, f.Address)
		if len(f.Sources) > 0 {
			said += "  only from " + strings.Join(f.Sources, ", ")
		}
		p.line("%s", said)
	}
	if len(svc.Frontends) == 0 {
		p.line("  no frontends")
	}
	policies := []string{"internalTrafficPolicy " + svc.InternalPolicy, "externalTrafficPolicy " + svc.ExternalPolicy}
	if svc.AffinitySeconds > 0 {
		policies = append(policies, fmt.Sprintf("sessionAffinity ClientIP for %ds", svc.AffinitySeconds))
	}
	p.line("  %s", strings.Join(policies, ", "))
}

// portName is "port http, TCP, IPv4".
func portName(s inspect.Service) string {
	return join(", ", prefixed("port ", s.Port), s.Protocol, s.Family)
}

func addresses(frontends []inspect.Frontend) string {
	words := make([]string, len(frontends))
	for i, f := range frontends {
		words[i] = f.Address
	}
	return orDash(strings.Join(words, ", "))
}

// endpoints prints endpoints, who uses them and why others do not.
func (p *Printer) endpoints(indent string, endpoints []inspect.Endpoint) {
	if len(endpoints) == 0 {
		p.line("%sno endpoints", indent)
		return
	}
	rows := [][]string{{"ENDPOINT", "NODE", "ZONE", "STATE", "USED BY", "CONNS", "BYTES", "LEFT OUT BECAUSE"}}
	for _, e := range endpoints {
		rows = append(rows, []string{e.Address, nodeOf(e), orDash(e.Zone), e.State, orDash(strings.Join(e.UsedBy, ", ")),
			number(e.Connections), size(e.Bytes), leftOut(e)})
	}
	p.table(indent, rows)
}

func nodeOf(e inspect.Endpoint) string {
	if e.Local {
		return e.Node + " (here)"
	}
	return orDash(e.Node)
}

// leftOut are the rules, and for whom where it is not all.
func leftOut(e inspect.Endpoint) string {
	var rules, words []string
	clients := map[string][]string{}
	for _, l := range e.LeftOut {
		if len(clients[l.Rule]) == 0 {
			rules = append(rules, l.Rule)
		}
		clients[l.Rule] = append(clients[l.Rule], l.Clients)
	}
	if len(rules) == 1 && len(e.UsedBy) == 0 {
		return rules[0]
	}
	for _, r := range rules {
		words = append(words, strings.Join(clients[r], ", ")+": "+r)
	}
	return strings.Join(words, "; ")
}

func deref(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

func number(n *uint64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// size is a number of bytes for people.
func size(n *uint64) string {
	if n == nil {
		return "-"
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, u := float64(*n), 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if u == 0 {
		return fmt.Sprintf("%d B", *n)
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

// Explanation prints what becomes of connections.
func (p *Printer) Explanation(x inspect.Explanation) error {
	if x.Service == nil {
		p.line("%s is no Service's: %s", p.paint(bold, x.Protocol+" "+x.To), x.Otherwise)
		return p.err
	}
	p.line("%s is the %s of %s", p.paint(bold, x.Protocol+" "+x.To), x.Frontend.Kind,
		p.paint(bold, join(", ", x.Service.Namespace+"/"+x.Service.Name, prefixed("port ", x.Service.Port))))
	if len(x.Without) > 0 {
		p.line("%s", p.paint(red, "Also wanted by "+strings.Join(x.Without, ", ")+", without success."))
	}
	for _, c := range x.Clients {
		p.line("")
		p.clientAnswer(c)
	}
	if x.Kernel != nil {
		p.line("")
		p.kernel(*x.Kernel)
	}
	return p.err
}

func (p *Printer) clientAnswer(c inspect.ClientAnswer) {
	who := map[string]string{
		inspect.Pod: "Pods of this node", inspect.OnNode: "The node itself", inspect.Outside: "Clients from outside",
	}[c.Is]
	if c.From != "" {
		as := map[string]string{
			inspect.Pod: "a pod of this node", inspect.OnNode: "this node itself", inspect.Outside: "a client from outside",
		}[c.Is]
		who = join(": ", fmt.Sprintf("%s counts as %s", c.From, as), c.Because)
	}
	colour := red
	if c.Outcome == inspect.Balanced {
		colour = green
	}
	p.line("%s", p.paint(bold, who))
	for _, r := range c.Rules {
		p.line("  %s", r)
	}
	said := c.Outcome
	if c.Outcome == inspect.Balanced {
		said = "balanced over " + plural(len(c.Endpoints), "endpoint")
	}
	p.line("  → %s", p.paint(colour, said))
	for _, e := range c.Endpoints {
		p.line("      %s", join("  ", e.Address, place(e), p.notReady(e)))
	}
	if c.Outcome == inspect.Balanced {
		yes := "no"
		if c.Masqueraded {
			yes = "yes"
		}
		p.line("  masqueraded: %s, %s", yes, c.MasqueradeRule)
	}
	if c.Itself != "" && !c.Masqueraded {
		p.line("  masqueraded where it reaches itself: %s", c.Itself)
	}
	if len(c.LeftOut) == 0 {
		return
	}
	p.line("  left out:")
	rows := make([]string, len(c.LeftOut))
	for i, e := range c.LeftOut {
		rows[i] = fmt.Sprintf("      %s  %s", join("  ", e.Address, place(e)), e.LeftOut[0].Rule)
	}
	p.line("%s", strings.Join(rows, "\n"))
}

func (p *Printer) notReady(e inspect.Endpoint) string {
	if e.State == "ready" {
		return ""
	}
	return e.State
}

func place(e inspect.Endpoint) string {
	return join(" ", prefixed("on ", nodeName(e)), prefixed("in ", e.Zone))
}

func nodeName(e inspect.Endpoint) string {
	if e.Node == "" {
		return "an unknown node"
	}
	return nodeOf(e)
}

func (p *Printer) kernel(k inspect.Kernel) {
	switch {
	case k.Error != "":
		p.line("%s", p.paint(red, "The kernel cannot be read back: "+k.Error))
		return
	case k.Agrees && k.Holds == nil:
		p.line("The kernel holds nothing there, and nothing is wanted yet.")
	case k.Agrees:
		p.line("%s: %s", p.paint(green, "The kernel holds just that"), held(*k.Holds))
	default:
		p.line("%s:", p.paint(red, "The kernel differs"))
		for _, d := range k.Differences {
			p.line("  %s", d)
		}
	}
	if k.Elsewhere > 0 {
		p.line("%s", p.paint(red, plural(k.Elsewhere, "difference")+" elsewhere: see `switchyard verify`"))
	}
}

func held(h inspect.Held) string {
	if h.Outside == h.Inside {
		return h.Outside
	}
	return fmt.Sprintf("%s for clients from outside, %s for the node and its pods", h.Outside, h.Inside)
}
