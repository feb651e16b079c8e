// Package costs counts what Switchyard costs in units that no clock measures, and compares them with a committed baseline.
//
// Most costs are counts: instructions, rules, messages, system calls, allocations,
// bytes. The few times among them are printed and not gated.
package costs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"

	"github.com/switchyard-io/switchyard/bench/result"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Cost is one figure. Of, Services and What name it.
type Cost struct {
	Of       string  `json:"of"`                 // a backend, or another part
	Services int     `json:"services,omitempty"` // how many there are; 0: does not matter
	What     string  `json:"what"`
	Unit     string  `json:"unit"`
	Value    float64 `json:"value"`
	Ungated  bool    `json:"-"` // depends on the machine: printed, and compared with nothing
}

// name returns what tells a Cost from all others.
func (c Cost) name() string {
	if c.Services == 0 {
		return c.Of + ": " + c.What
	}
	return fmt.Sprintf("%s, %s Services: %s", c.Of, result.Thousands(c.Services), c.What)
}

// Set is all that one run counted, and on what.
type Set struct {
	Linux string `json:"linux"` // the kernel's version
	Go    string `json:"go"`
	Costs []Cost `json:"costs"`
	// Without says what could not be counted here, and why.
	Without []string `json:"-"`
}

// sizes returns the numbers of Services that each backend has in turn.
func sizes() []int { return []int{few, many} }

const (
	few  = 10
	many = 10_000
)

// bench is one run.
type bench struct {
	node *netlab.Node
	lab  *netlab.Lab
	set  *Set
}

// Run makes a lab of one node, counts and removes it. progress is told what goes on.
func Run(ctx context.Context, progress func(format string, args ...any)) (_ *Set, err error) {
	lab, err := netlab.New(ctx, netlab.Config{Nodes: 1, Pods: 2, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	b := &bench{node: lab.Nodes[0], lab: lab, set: &Set{Go: runtime.Version()}}
	b.set.Linux, _, _ = strings.Cut(result.ThisMachine(nil).Kernel, "-")
	progress("counting what the watcher costs")
	if err := b.watcher(); err != nil {
		return nil, fmt.Errorf("counting what the watcher costs: %w", err)
	}
	if err := b.prepareRoutes(ctx); err != nil {
		return nil, err
	}
	for _, name := range backends() {
		for _, n := range sizes() {
			progress("counting what %s costs with %s Services", name, result.Thousands(n))
			if err := b.backend(ctx, name, n); err != nil {
				return nil, fmt.Errorf("counting what %s costs with %d Services: %w", name, n, err)
			}
		}
	}
	return b.set, nil
}

// add adds costs of one backend with so many Services.
func (b *bench) add(of string, services int, costs ...Cost) {
	for _, c := range costs {
		c.Of, c.Services = of, services
		b.set.Costs = append(b.set.Costs, c)
	}
}

// prepareRoutes makes the node throw away what goes to endpoints that do not exist,
// and to an address that no Service has, so that sockets which ask for them send
// nothing.
func (b *bench) prepareRoutes(ctx context.Context) error {
	for _, to := range []string{noEndpoints, nobody + "/32"} {
		if _, err := b.node.Run(ctx, "ip", "route", "add", "blackhole", to); err != nil {
			return err
		}
	}
	_, err := b.node.Pods[1].Serve(netlab.UDP, servedPort)
	return err
}
