package conformance

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Times of probes.
var (
	answerTime = netlab.Patient(5 * time.Second)        // an answer must come within this, on a busy machine too
	rejectTime = netlab.Patient(time.Second)            // a reject must come within this
	dropTime   = netlab.Patient(400 * time.Millisecond) // what has not been answered by then is dropped
)

// manyTries is how often a probe asks at least, so that an endpoint outside the
// pool is noticed.
const manyTries = 6

// atATime bounds how many probes are out at a time.
const atATime = 32

// probe is one sentence about traffic: from a host, to a frontend, what
// becomes of it. It holds in each protocol and family.
type probe struct {
	client    string
	service   string
	kind      dataplane.Kind
	node      string                                // of a NodePort: whose address
	at        func(dataplane.Family) netip.AddrPort // instead of a frontend
	atText    string                                // what at is
	source    func(dataplane.Family) netip.Addr     // nil: the kernel's choice
	want      netlab.Outcome                        // "": anything but an answer
	servers   string                                // who answers
	as        string                                // whose address the server must see; "": not checked
	elsewhere string                                // servers whose answer cannot find its way, so that no answer will do too
	single    bool                                  // ask once, not manyTries times
	mark      uint32                                // of the client's packets (SO_MARK)
	protocols []dataplane.Protocol
	families  []dataplane.Family
}

// from begins a probe by a host.
func from(client string) probe {
	return probe{client: client, protocols: protocols, families: families}
}

// to makes for a service's ClusterIP, load balancer IP or external IP.
func (p probe) to(kind dataplane.Kind, service string) probe {
	p.kind, p.service = kind, service
	return p
}

// toNodePort makes for a service's NodePort on a node.
func (p probe) toNodePort(service, node string) probe {
	p.kind, p.service, p.node = nodePort, service, node
	return p
}

// toAddr makes for an address that is no frontend; what says what it is.
func (p probe) toAddr(what string, at func(dataplane.Family) netip.AddrPort) probe {
	p.atText, p.at = what, at
	return p
}

// reaches says who answers: each of these, and nobody else.
func (p probe) reaches(servers string) probe {
	p.want, p.servers = netlab.Answered, servers
	return p
}

// seenAs says whose source address the server sees.
func (p probe) seenAs(host string) probe {
	p.as = host
	return p
}

// rejected says that the client learns at once that nobody is there.
func (p probe) rejected() probe {
	p.want = netlab.Refused
	return p
}

// dropped says that nothing comes back.
func (p probe) dropped() probe {
	p.want = netlab.TimedOut
	return p
}

// notServed says that nobody answers, however the client learns.
func (p probe) notServed() probe {
	p.want = ""
	return p
}

// butNotFrom says that answers of these servers cannot find their way back, so
// that none is right too.
func (p probe) butNotFrom(servers string) probe {
	p.elsewhere = servers
	return p
}

// once says to ask just once.
func (p probe) once() probe {
	p.single = true
	return p
}

// in says which protocols the sentence is about.
func (p probe) in(protocols ...dataplane.Protocol) probe {
	p.protocols = protocols
	return p
}

// over says which families the sentence is about.
func (p probe) over(families ...dataplane.Family) probe {
	p.families = families
	return p
}

// check does probes and reports those that were wrong.
func (r *run) check(probes ...probe) {
	r.Helper()
	const most = 12
	var all sync.WaitGroup
	slots := make(chan struct{}, atATime)
	outcomes := make([]*outcome, len(probes))
	for i, p := range probes {
		outcomes[i] = &outcome{seen: map[answerer]bool{}}
		for _, protocol := range p.protocols {
			for _, family := range p.families {
				slots <- struct{}{}
				all.Go(func() {
					defer func() { <-slots }()
					r.try(p, protocol, family, outcomes[i])
				})
			}
		}
	}
	all.Wait()
	var wrong []string
	for i, p := range probes {
		wrong = append(wrong, outcomes[i].wrong...)
		if missing := outcomes[i].missing(p); len(missing) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s to %s: never answered by %s", p.client, r.targetText(p), strings.Join(missing, " ")))
		}
	}
	slices.Sort(wrong)
	for i, text := range wrong {
		if i == most {
			r.Errorf("and %d more", len(wrong)-most)
			break
		}
		r.Error(text)
	}
}

// answerer is who answered, and in which family.
type answerer struct {
	server string
	family dataplane.Family
}

// outcome is what became of one probe in all its protocols and families.
type outcome struct {
	mu    sync.Mutex
	seen  map[answerer]bool
	wrong []string
}

// missing are the servers that should have answered some of so many requests.
func (o *outcome) missing(p probe) []string {
	if p.want != netlab.Answered || p.single || p.elsewhere != "" || len(o.wrong) > 0 {
		return nil
	}
	var missing []string
	for _, family := range p.families {
		for server := range strings.FieldsSeq(p.servers) {
			if !o.seen[answerer{server, family}] {
				missing = append(missing, server+" ("+family.String()+")")
			}
		}
	}
	return missing
}

// triesFor is how often to ask in each protocol and family: enough to notice
// an endpoint outside the pool, and for an even spread over the pool to miss
// one endpoint in a family with a probability below 1e-8.
func (p probe) triesFor() int {
	if p.want != netlab.Answered || p.single {
		return 1
	}
	if p.elsewhere != "" {
		return manyTries / 2 // each may take dropTime
	}
	tries := manyTries
	if n := float64(len(strings.Fields(p.servers))); n > 1 {
		all := math.Log(1e-8/n) / math.Log(1-1/n)
		tries = max(tries, int(math.Ceil(all/float64(len(p.protocols)))))
	}
	return tries
}

// try does one probe in one protocol and family.
func (r *run) try(p probe, protocol dataplane.Protocol, family dataplane.Family, o *outcome) {
	req := r.request(p, protocol, family)
	switch {
	case p.want == netlab.Answered && p.elsewhere == "":
		req.Timeout = answerTime
	case p.want == netlab.Refused:
		req.Timeout = 3 * rejectTime
	default:
		req.Timeout = dropTime
	}
	for range p.triesFor() {
		a, err := r.ask(p, protocol, req)
		text := ""
		if err != nil {
			text = err.Error()
		} else if text = r.judge(p, protocol, family, a); text != "" {
			text = fmt.Sprintf("%s %s: %s to %s (%s): %s; %s", protocol, family, p.client, r.targetText(p), req.To, text, a)
		}
		o.mu.Lock()
		o.seen[answerer{a.Server, family}] = true
		if text != "" {
			o.wrong = append(o.wrong, text)
		}
		o.mu.Unlock()
		if text != "" {
			return
		}
	}
}

// ask asks once, and once more where a single packet may have been lost: nobody
// sends a datagram, or SCTP made by hand, again while the lab's devices learn where
// an address is now. A Service that is not served answers neither. What is lost
// while Syncs go on is counted by loads and held flows.
func (r *run) ask(p probe, protocol dataplane.Protocol, req netlab.Request) (netlab.Answer, error) {
	a, err := r.host(p.client).Ask(req)
	if err == nil && a.Outcome == netlab.TimedOut && protocol != dataplane.TCP && p.want == netlab.Answered && p.elsewhere == "" {
		r.Logf("%s: %s to %s (%s): %s; asking again", protocol, p.client, r.targetText(p), req.To, a)
		a, err = r.host(p.client).Ask(req)
	}
	if err == nil && p.want == netlab.Answered && p.elsewhere == "" && r.forgives(fmt.Sprintf("%s to %s (%s)", p.client, r.targetText(p), req.To), a) {
		a, err = r.host(p.client).Ask(req)
	}
	return a, err
}

// request is a probe in one protocol and family.
func (r *run) request(p probe, protocol dataplane.Protocol, family dataplane.Family) netlab.Request {
	req := netlab.Request{Protocol: wireName(protocol), Mark: p.mark}
	switch {
	case p.at != nil:
		req.To = p.at(family)
	case p.kind == nodePort:
		req.To = netip.AddrPortFrom(r.node(p.node).Addr(int(family)), r.frontendAddr(r.service(p.service), nodePort, family).Port())
	default:
		req.To = r.frontendAddr(r.service(p.service), p.kind, family)
	}
	if p.source != nil {
		req.From = netip.AddrPortFrom(p.source(family), 0)
	}
	return req
}

func (r *run) targetText(p probe) string {
	switch {
	case p.at != nil:
		return p.atText
	case p.kind == nodePort:
		return "the NodePort of " + p.service + " on " + p.node
	}
	return "the " + p.kind.String() + " of " + p.service
}

// judge says what is wrong with an answer; "": nothing.
func (r *run) judge(p probe, protocol dataplane.Protocol, family dataplane.Family, a netlab.Answer) string {
	if p.want == "" {
		if a.Outcome == netlab.Answered {
			return "nobody should answer"
		}
		return ""
	}
	if p.want == netlab.Answered && a.Outcome != netlab.Answered && p.elsewhere != "" {
		return "" // it went to an endpoint whose answer finds no way back
	}
	if a.Outcome != p.want {
		return "should be " + p.sentence()
	}
	if p.want == netlab.Refused && a.Took > rejectTime {
		return fmt.Sprintf("should be refused within %s", rejectTime)
	}
	if p.want != netlab.Answered {
		return ""
	}
	if !slices.Contains(strings.Fields(p.servers), a.Server) {
		return "should be " + p.sentence()
	}
	if p.as != "" {
		p.as = r.seenAs(p, protocol)
		if a.Source.Addr() != r.host(p.as).Addr(int(family)) {
			return "should be " + p.sentence()
		}
	}
	return ""
}

// seenAs is whose address the server sees: the table's, but where the client's
// own socket was translated there was no packet to masquerade (docs/adr/0004).
func (r *run) seenAs(p probe, protocol dataplane.Protocol) string {
	node := r.nodeOf(p.client)
	if !r.col.sockets || node == nil || protocol != dataplane.TCP || p.source != nil {
		return p.as // a socket that is bound, or of connected UDP, is left to packets
	}
	if p.at == nil && p.kind == nodePort && p.node != node.Name {
		return p.as // another node's address: packets arrive there
	}
	if p.at == nil && slices.ContainsFunc(r.service(p.service).frontends, func(f frontend) bool { return f.kind == p.kind && len(f.sources) > 0 }) {
		return p.as // who may come in is decided by packets, too
	}
	return p.client
}

// nodeOf is the node that a host is or lives on; nil: it is outside.
func (r *run) nodeOf(host string) *netlab.Node {
	for _, n := range r.lab.Nodes {
		if h := r.host(host); h == n.Host || slices.Contains(n.Pods, h) {
			return n
		}
	}
	return nil
}

func (p probe) sentence() string {
	if p.want != netlab.Answered {
		return string(p.want)
	}
	s := "answered by one of " + p.servers
	if p.as != "" {
		s += ", seen as " + p.as
	}
	return s
}

func wireName(p dataplane.Protocol) string { return strings.ToLower(p.String()) }
