// Package netlab is nodes, pods and outside clients in network namespaces: the lab of the tests, the demo and the benchmarks.
//
// A lab is a routed network without any address translation of its own:
//
//	pods a1 a2 a3 ── node-a ──┐
//	                        router ── outside
//	pods b1 b2 b3 ── node-b ──┘
//
// Everything has IPv4 and IPv6. Each node, pod and client is a network
// namespace with a process of its own in it (this binary, executed again), so
// that real processes own the sockets; each node's processes are in a cgroup
// of that node where cgroup v2 can be found. The router knows the pods' and
// nodes' addresses and nothing of Services: what a node lets out by mistake
// comes back as "no route", and what Announce names is known only to packets
// that come from outside.
//
// A program that makes labs calls Main first of all.
package netlab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a lab; its addresses are numbered by one byte.
const (
	maxNodes   = 9
	maxPods    = 200 // of a node
	maxClients = 9
	maxLabs    = 64 // at a time in one process
)

// stopTime is how long a host's process may take to end by itself.
const stopTime = 2 * time.Second

// PodInterfacePrefix starts the name of each interface of a node that leads to a pod.
const PodInterfacePrefix = "pod"

// Config says what a lab has.
type Config struct {
	Nodes   int          // 1 to 9; 0: two. Called node-a, node-b, …
	Pods    int          // of each node, 1 to 200; 0: three; negative: none. Called a1, a2, …, b1, …
	Clients int          // outside clients, 1 to 9; 0: one. Called outside, outside2, …
	Log     *slog.Logger // nil: nothing is told
}

// Lab is a network of hosts. Close removes it.
type Lab struct {
	Name    string // starts the name of each of its namespaces
	Nodes   []*Node
	Clients []*Host

	router *Host
	log    *slog.Logger
	cgroup string // of the whole lab; "": no cgroup v2 here
	close  sync.Once
	closed error
}

// Node is a host that pods live on.
type Node struct {
	*Host
	PodCIDRs []netip.Prefix // IPv4, then IPv6
	Pods     []*Host
	// CgroupRoot is above the cgroups of the node's own processes and of its
	// pods; "": no cgroup v2 here.
	CgroupRoot string
	// PinDir is for what is pinned to a bpf file system on this node. It is
	// removed with the lab.
	PinDir string
}

// ClusterCIDRs hold all pods of all labs: IPv4, then IPv6.
func ClusterCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.40.0.0/16"), netip.MustParsePrefix("fd40::/48")}
}

// RequireRoot says what is missing where labs cannot be made; nil: nothing.
func RequireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	return nil
}

// New makes a lab, after removing what labs of killed processes left behind.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	cfg.Nodes, cfg.Clients = cmp.Or(cfg.Nodes, 2), cmp.Or(cfg.Clients, 1)
	cfg.Pods = max(cmp.Or(cfg.Pods, 3), 0)
	if cfg.Nodes < 1 || cfg.Nodes > maxNodes || cfg.Pods > maxPods || cfg.Clients < 1 || cfg.Clients > maxClients {
		return nil, fmt.Errorf("a lab has 1 to %d nodes, up to %d pods on each and 1 to %d clients", maxNodes, maxPods, maxClients)
	}
	if err := RequireRoot(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := ShareNames(); err != nil {
		return nil, err
	}
	if err := removeLeftovers(cfg.Log); err != nil {
		return nil, err
	}
	l := &Lab{log: cfg.Log}
	if err := l.begin(); err != nil {
		return nil, err
	}
	if err := l.build(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("making lab %s: %w", l.Name, err), l.Close())
	}
	return l, nil
}

// begin gives the lab the first name that no other lab of this process has,
// and its router.
func (l *Lab) begin() error {
	for n := range maxLabs {
		var err error
		if l.Name, err = labName(os.Getpid(), n+1); err != nil {
			return err
		}
		l.router, err = l.newHost("router", "")
		if err == nil {
			return l.routeLikeOutside("lo") // what the router itself sends: ICMP errors
		}
		if !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return fmt.Errorf("this process has %d labs already", maxLabs)
}

// build makes namespaces, links and processes, in this order.
func (l *Lab) build(ctx context.Context, cfg Config) error {
	l.cgroup = makeLabCgroup(l.Name, l.log)
	for i := 1; i <= cfg.Nodes; i++ {
		if err := l.addNode(i, cfg.Pods); err != nil {
			return err
		}
	}
	for i := 1; i <= cfg.Clients; i++ {
		if err := l.addClient(i); err != nil {
			return err
		}
	}
	for _, h := range l.Hosts() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.startProcess(); err != nil {
			return err
		}
	}
	for _, h := range l.Hosts() { // they come up side by side
		if err := h.begin(); err != nil {
			return err
		}
	}
	return nil
}

// addNode makes node i with its pods.
func (l *Lab) addNode(i, pods int) error {
	letter := string(rune('a' + i - 1))
	cgroup := subCgroup(l.cgroup, "node-"+letter)
	host, err := l.newHost("node-"+letter, cgroup)
	if err != nil {
		return err
	}
	n := &Node{Host: host, PodCIDRs: podCIDRs(i), CgroupRoot: cgroup, PinDir: pinDir(l.Name, host.Name)}
	l.Nodes = append(l.Nodes, n)
	if err := l.wireNode(n, i); err != nil {
		return fmt.Errorf("connecting %s: %w", n.Name, err)
	}
	for k := 1; k <= pods; k++ {
		pod, err := l.newHost(fmt.Sprintf("%s%d", letter, k), cgroup)
		if err != nil {
			return err
		}
		n.Pods = append(n.Pods, pod)
		if err := l.wirePod(n, pod, i, k); err != nil {
			return fmt.Errorf("connecting pod %s: %w", pod.Name, err)
		}
	}
	return nil
}

// addClient makes outside client i.
func (l *Lab) addClient(i int) error {
	name := "outside"
	if i > 1 {
		name = fmt.Sprintf("outside%d", i)
	}
	c, err := l.newHost(name, subCgroup(l.cgroup, name))
	if err != nil {
		return err
	}
	l.Clients = append(l.Clients, c)
	if err := l.wireClient(c, i); err != nil {
		return fmt.Errorf("connecting %s: %w", name, err)
	}
	return nil
}

// Hosts are all hosts that have a process: nodes, pods, clients.
func (l *Lab) Hosts() []*Host {
	var hosts []*Host
	for _, n := range l.Nodes {
		hosts = append(hosts, n.Host)
		hosts = append(hosts, n.Pods...)
	}
	return append(hosts, l.Clients...)
}

// Router is what connects nodes and clients. Its devices have their names.
func (l *Lab) Router() *Host { return l.router }

// Host finds a host by name; nil: there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.Hosts() {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Close ends all processes of the lab and removes its namespaces, cgroups and pins.
// It may be called more than once.
func (l *Lab) Close() error {
	l.close.Do(func() { l.closed = l.remove() })
	return l.closed
}

func (l *Lab) remove() error {
	hosts := l.Hosts()
	if l.router != nil {
		hosts = append(hosts, l.router)
	}
	var errs []error
	var stopping sync.WaitGroup
	for _, h := range hosts {
		stopping.Go(h.stopProcesses)
	}
	stopping.Wait()
	for _, h := range hosts {
		errs = append(errs, h.remove())
	}
	for _, n := range l.Nodes {
		errs = append(errs, removePins(n.PinDir))
	}
	return errors.Join(append(errs, removeCgroup(l.cgroup))...)
}

// CloseOnSignal closes the lab and ends the process when it is interrupted or
// told to terminate. The function that it returns undoes this.
func (l *Lab) CloseOnSignal() (undo func()) {
	signals := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			if err := l.Close(); err != nil {
				l.log.Error("closing the lab", "error", err)
			}
			os.Exit(128 + int(s.(unix.Signal)))
		case <-done:
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			signal.Stop(signals)
			close(done)
		})
	}
}
