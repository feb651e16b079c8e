package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// agentRole is the process on a node that runs the backend under test.
const agentRole = "agent"

// newAgentServices makes the RPC services of that process.
func newAgentServices() map[string]any {
	a := &agentService{}
	a.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	return map[string]any{"Agent": a}
}

// agentService is the backend, driven from the test.
type agentService struct {
	log     *slog.Logger
	mu      sync.Mutex
	col     column
	cfg     dataplane.Config
	backend dataplane.Backend
	synced  *dataplane.Snapshot // last accepted, less what was refused; nil: unknown
}

// Wire types. Snapshots travel as JSON, for their unexported parts.
type (
	// OpenArgs chooses the backend.
	OpenArgs struct {
		Column   string
		Site     site
		Families []dataplane.Family
	}
	// SyncArgs is a Snapshot to sync.
	SyncArgs struct {
		Unknown  bool   // give prev as nil
		Snapshot []byte // wireSnapshot
	}
	// SyncReply is how that went.
	SyncReply struct {
		Err    string // "": well
		Failed []byte // of a PartialError: JSON of []wirePortError
	}
)

type wireSnapshot struct {
	Revision     uint64
	Node         *dataplane.Node
	ServiceCIDRs []string
	Ports        []*dataplane.ServicePort
}

type wirePortError struct {
	ID  dataplane.PortID
	Err string
}

// Open opens the backend.
func (a *agentService) Open(args OpenArgs, _ *struct{}) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	if a.col, err = columnNamed(args.Column); err != nil {
		return err
	}
	a.cfg = agentConfig(a.log, args.Families)
	a.backend, err = a.col.driver(args.Site).Open(context.Background(), a.cfg)
	return err
}

// Sync syncs a Snapshot as the agent would: it shares with the one before
// every ServicePort and the Node where they are equal, by pointer.
func (a *agentService) Sync(args SyncArgs, reply *SyncReply) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	want, err := a.decode(args.Snapshot)
	if err != nil {
		return err
	}
	prev := a.synced
	if args.Unknown {
		prev = nil
	}
	err = a.backend.Sync(context.Background(), prev, want)
	var partial *dataplane.PartialError
	switch {
	case err == nil:
		a.synced = want
	case errors.As(err, &partial):
		reply.Err = err.Error()
		var failed []wirePortError
		for _, f := range partial.Failed {
			failed = append(failed, wirePortError{f.ID, f.Err.Error()})
		}
		reply.Failed, err = json.Marshal(failed)
		a.synced = less(want, prev, failed)
		return err
	default:
		reply.Err = err.Error()
		a.synced = nil
	}
	return nil
}

// less is what the kernel holds after a PartialError.
func less(want, prev *dataplane.Snapshot, failed []wirePortError) *dataplane.Snapshot {
	var put []*dataplane.ServicePort
	var remove []dataplane.PortID
	for _, f := range failed {
		if prev != nil && prev.Ports.Get(f.ID) != nil {
			put = append(put, prev.Ports.Get(f.ID))
		} else {
			remove = append(remove, f.ID)
		}
	}
	held := *want
	held.Ports = want.Ports.With(put, remove)
	return &held
}

func (a *agentService) decode(data []byte) (*dataplane.Snapshot, error) {
	var w wireSnapshot
	if err := json.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("decoding a Snapshot: %w", err)
	}
	s := &dataplane.Snapshot{Revision: w.Revision, Node: w.Node, ServiceCIDRs: prefixes(w.ServiceCIDRs)}
	if a.synced == nil {
		for _, p := range w.Ports {
			sharePools(p)
		}
		s.Ports = dataplane.MakePorts(w.Ports...)
		return s, nil
	}
	if reflect.DeepEqual(a.synced.Node, s.Node) {
		s.Node = a.synced.Node
	}
	wanted := map[dataplane.PortID]bool{}
	var put []*dataplane.ServicePort
	var remove []dataplane.PortID
	for _, p := range w.Ports {
		sharePools(p)
		wanted[p.ID] = true
		if old := a.synced.Ports.Get(p.ID); old == nil || !reflect.DeepEqual(old, p) {
			put = append(put, p)
		}
	}
	for p := range a.synced.Ports.All() {
		if !wanted[p.ID] {
			remove = append(remove, p.ID)
		}
	}
	s.Ports = a.synced.Ports
	if len(put)+len(remove) > 0 {
		s.Ports = s.Ports.With(put, remove)
	}
	return s, nil
}

// sharePools makes the equal pools of a ServicePort one.
func sharePools(p *dataplane.ServicePort) {
	var known []*dataplane.Pool
	share := func(pool *dataplane.Pool) *dataplane.Pool {
		for _, k := range known {
			if pool == nil || reflect.DeepEqual(k, pool) {
				return k
			}
		}
		known = append(known, pool)
		return pool
	}
	for i := range p.Frontends {
		f := &p.Frontends[i]
		f.Pool = share(f.Pool)
		if f.Inside != nil {
			f.Inside = share(f.Inside)
		}
	}
}

// Observe reads the kernel back, as JSON.
func (a *agentService) Observe(_ struct{}, reply *[]byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	o, err := a.backend.Observe(context.Background())
	if err != nil {
		return err
	}
	*reply, err = json.Marshal(o)
	return err
}

// EndFlows does what the agent does beside its Syncs: it ends UDP flows to
// endpoints that are gone (KUBE-PROXY §1.15), all of them once.
func (a *agentService) EndFlows(_ struct{}, _ *struct{}) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	todo := len(a.cfg.Families)
	c := conntrack.New(a.log, a.cfg.Families...)
	c.Report = func(p conntrack.Pass) {
		if p.Err == nil {
			todo--
		}
		if todo == 0 {
			cancel()
		}
	}
	c.Synced(a.synced)
	c.Run(ctx)
	if todo > 0 {
		return errors.New("the table of connections could not be cleaned in time")
	}
	return nil
}

// Close closes the backend.
func (a *agentService) Close(_ struct{}, _ *struct{}) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.backend.Close()
}

// Cleanup clears what is Switchyard's, and needs no backend open.
func (a *agentService) Cleanup(args OpenArgs, _ *struct{}) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	col, err := columnNamed(args.Column)
	if err != nil {
		return err
	}
	a.synced = nil
	return col.driver(args.Site).Cleanup(context.Background(), agentConfig(a.log, args.Families))
}

// agent is that process as the test sees it.
type agent struct {
	node    *netlab.Node
	col     column
	site    site
	process *netlab.Process
	known   bool // its last Sync succeeded
}

// startAgent starts an agent on a node; its backend is open when this returns.
func startAgent(n *netlab.Node, col column, at site, env []string, families ...dataplane.Family) (*agent, error) {
	p, err := n.StartRole(agentRole, env)
	if err != nil {
		return nil, err
	}
	a := &agent{node: n, col: col, site: at, process: p}
	if err := p.Call("Agent.Open", OpenArgs{col.name, at, families}, &struct{}{}); err != nil {
		p.Kill()
		return nil, fmt.Errorf("opening %s on %s: %w", col.name, n.Name, err)
	}
	return a, nil
}

func (a *agent) alive() bool {
	if a == nil {
		return false
	}
	select {
	case <-a.process.Exited():
		return false
	default:
		return true
	}
}

// sync syncs; the error is what the backend returned. A *partialError keeps
// the IDs.
func (a *agent) sync(unknown bool, s *dataplane.Snapshot) error {
	w := wireSnapshot{Revision: s.Revision, Node: s.Node}
	for _, c := range s.ServiceCIDRs {
		w.ServiceCIDRs = append(w.ServiceCIDRs, c.String())
	}
	for p := range s.Ports.All() {
		w.Ports = append(w.Ports, p)
	}
	data, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("encoding a Snapshot: %w", err)
	}
	var reply SyncReply
	if err := a.process.Call("Agent.Sync", SyncArgs{unknown || !a.known, data}, &reply); err != nil {
		a.known = false
		return err
	}
	a.known = reply.Err == "" || len(reply.Failed) > 0
	if len(reply.Failed) > 0 {
		p := &partialError{text: reply.Err}
		if err := json.Unmarshal(reply.Failed, &p.failed); err != nil {
			return fmt.Errorf("decoding a PartialError: %w", err)
		}
		return p
	}
	if reply.Err != "" {
		return errors.New(reply.Err)
	}
	return nil
}

// partialError is a dataplane.PartialError that came over the wire.
type partialError struct {
	text   string
	failed []wirePortError
}

func (e *partialError) Error() string { return e.text }

func (a *agent) endFlows() error { return a.process.Call("Agent.EndFlows", struct{}{}, &struct{}{}) }

func (a *agent) observe() (*dataplane.Observation, error) {
	var data []byte
	if err := a.process.Call("Agent.Observe", struct{}{}, &data); err != nil {
		return nil, err
	}
	o := &dataplane.Observation{}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(o); err != nil {
		return nil, fmt.Errorf("decoding an Observation: %w", err)
	}
	return o, nil
}

func (a *agent) close() error { return a.process.Call("Agent.Close", struct{}{}, &struct{}{}) }

func (a *agent) cleanup() error {
	a.known = false
	return a.process.Call("Agent.Cleanup", OpenArgs{Column: a.col.name, Site: a.site}, &struct{}{})
}

// log is the last lines that the agent wrote.
func (a *agent) log() string {
	const most = 12
	lines := strings.Split(strings.TrimSpace(a.process.Output.String()), "\n")
	return strings.Join(lines[max(len(lines)-most, 0):], "\n")
}
