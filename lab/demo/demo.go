package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	requests = 1000 // of each of the first two scenes
	atATime  = 8

	workers  = 2 // of each client while pods come and go
	interval = 10 * time.Millisecond
	settle   = 500 * time.Millisecond // from a change until requests are counted for it
	window   = 1500 * time.Millisecond
)

// demo is the story that is told.
type demo struct {
	out     *screen
	lab     *netlab.Lab
	agents  *agents
	cluster *cluster
	servers map[string]*netlab.Server
}

func (d *demo) play(ctx context.Context) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	inside := netlab.Request{Protocol: netlab.TCP, To: netip.AddrPortFrom(netip.MustParseAddr(clusterIP), servicePort)}
	if err := d.spread("1. Pod a3 asks the ClusterIP "+inside.To.String(), d.lab.Host("a3"), inside); err != nil {
		return err
	}
	outside := netlab.Request{Protocol: netlab.TCP, To: netip.AddrPortFrom(d.lab.Nodes[0].Addr(4), nodePort)}
	if err := d.spread("2. A client outside asks the NodePort "+outside.To.String(), d.lab.Clients[0], outside); err != nil {
		return err
	}
	other := outside
	other.To = netip.AddrPortFrom(d.lab.Nodes[1].Addr(4), nodePort)
	var loads []*netlab.Load
	for _, l := range []struct {
		from *netlab.Host
		to   netlab.Request
	}{{d.lab.Host("a3"), inside}, {d.lab.Clients[0], outside}, {d.lab.Clients[0], other}} {
		load, err := l.from.Load(l.to, workers, netlab.Patient(interval))
		if err != nil {
			return err
		}
		loads = append(loads, load)
	}
	return d.change(ctx, loads)
}

// begin starts the pods and the agents.
func (d *demo) begin(ctx context.Context) error {
	a, b, outside := d.lab.Nodes[0], d.lab.Nodes[1], d.lab.Clients[0]
	d.out.line("%s", d.out.paint(bold, "Switchyard on two nodes"))
	d.out.line("Each node and each pod is a network namespace of this machine.\n")
	d.out.line("   node-a   %-10s  pods a1 and a2; pod a3 is a client", a.Addr(4))
	d.out.line("   node-b   %-10s  pods b1 and b2; pod b3 comes later", b.Addr(4))
	d.out.line("   outside  %-10s  a client that is on no node", outside.Addr(4))
	d.out.line("   Service  %-10s  %q, port %d, NodePort %d\n", clusterIP, serviceName, servicePort, nodePort)
	if err := d.cluster.create(); err != nil {
		return err
	}
	d.servers = map[string]*netlab.Server{}
	for _, pod := range []string{"a1", "a2", "b1", "b2"} {
		if err := d.startPod(pod); err != nil {
			return err
		}
	}
	start := time.Now()
	for _, n := range d.lab.Nodes {
		if err := d.agents.start(n, d.cluster.dir); err != nil {
			return err
		}
	}
	if err := d.agents.ready(ctx); err != nil {
		return err
	}
	backend, err := a.Get(ctx, metricsAddr, "/proxyMode")
	if err != nil {
		return fmt.Errorf("asking the agent for its backend: %w", err)
	}
	d.out.line("On each node runs the agent, with backend %s. Both were ready after %.1f s.",
		bytes.TrimSpace(backend), time.Since(start).Seconds())
	return nil
}

// startPod starts a pod's server and then makes the pod an endpoint.
func (d *demo) startPod(name string) error {
	pod := d.lab.Host(name)
	s, err := pod.Serve(netlab.TCP, targetPort)
	if err != nil {
		return err
	}
	d.servers[name] = s
	return d.cluster.add(pod)
}

// spread asks many times and shows who answered.
func (d *demo) spread(title string, from *netlab.Host, r netlab.Request) error {
	d.out.heading("%s %d times", title, requests)
	t, err := from.AskMany(r, requests, atATime)
	if err != nil {
		return err
	}
	widths := []int{-4, -8, 8, 7, -20}
	d.out.cells(widths, "pod", "node", "requests", "share")
	var missing []string
	for _, e := range d.cluster.endpoints {
		n := t.ByServer[e.pod.Name]
		share := float64(n) / float64(max(t.Requests, 1))
		d.out.cells(widths, e.pod.Name, e.node, fmt.Sprint(n), fmt.Sprintf("%.0f %%", 100*share), strings.Repeat("▪", int(40*share+.5)))
		if n == 0 {
			missing = append(missing, e.pod.Name)
		}
	}
	d.out.line("   %s", d.out.verdict(t.Requests, t.Failed))
	switch {
	case t.Failed > 0:
		return errors.New(t.String())
	case len(missing) > 0:
		return fmt.Errorf("no request reached %s", strings.Join(missing, ", "))
	}
	return nil
}

// change lets pods come and go under load.
func (d *demo) change(ctx context.Context, loads []*netlab.Load) error {
	d.out.heading("3. Pods go and come while both clients keep asking")
	c := &count{out: d.out, loads: loads, pods: []string{"a1", "a2", "b1", "b2", "b3"}}
	c.header()
	a2 := d.lab.Host("a2")
	for _, step := range []struct {
		title  string
		do     func() error
		idle   string // pods that must answer nothing once the change has settled
		answer string // pods that must
	}{
		{"four pods", func() error { return nil }, "b3", "a1 a2 b1 b2"},
		{"a2 is terminating", func() error { return d.cluster.terminate(a2) }, "a2 b3", "a1 b1 b2"},
		{"a2 has stopped", d.servers["a2"].Stop, "a2 b3", "a1 b1 b2"},
		{"a2 is removed", func() error { return d.cluster.remove(a2) }, "a2 b3", "a1 b1 b2"},
		{"b3 is added", func() error { return d.startPod("b3") }, "a2", "a1 b1 b2 b3"},
	} {
		if err := c.step(ctx, step.title, step.do, step.idle, step.answer); err != nil {
			return err
		}
	}
	return c.end()
}
