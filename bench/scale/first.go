package scale

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// First says how first packets are measured.
type First struct {
	Rounds   int
	Sizes    []int // numbers of Services, growing
	Dials    int   // connections in a round, each to another Service
	Within   time.Duration
	Progress Progress
}

// Run opens TCP connections to Services picked at random, of which there are more
// and more. A round picks the same for each proxy.
func (c First) Run(ctx context.Context, plane *control.Plane, proxies []*proxy.Proxy, report *result.Report) error {
	_, there := proxies[0].Endpoints()
	var have []*control.Placed
	running := slices.Clone(proxies)
	for _, size := range c.Sizes {
		for _, p := range running {
			p.Stop()
		}
		c.Progress("creating Services until there are %s", result.Thousands(size))
		var err error
		if have, err = fill(ctx, plane, have, size, func(i int) control.Service {
			return control.Service{Name: fmt.Sprintf("fill-%d", i), Ports: tcp(), Endpoints: []control.Endpoint{there}}
		}); err != nil {
			return err
		}
		if running, err = c.start(ctx, running, size, report); err != nil {
			return err
		}
		for round := range c.Rounds + 1 { // the first one is to warm up
			c.Progress("%s Services: round %d of %d", result.Thousands(size), round, c.Rounds)
			for i := range running {
				p := running[(i+round)%len(running)]
				h, err := c.round(p, have, size, round)
				if err != nil {
					return fmt.Errorf("%s, %d Services: %w", p.Name, size, err)
				}
				if round == 0 {
					continue
				}
				for _, q := range []float64{50, 99} {
					report.Add(result.Series{
						Key: key(result.FirstPacket, result.TimeToConnect, fmt.Sprintf("p%g", q), p, size), Unit: "µs",
					}, float64(h.ValueAtPercentile(q))/1e3)
				}
			}
		}
	}
	return nil
}

// start starts the proxies; those that take too long are left out from here on.
func (c First) start(ctx context.Context, proxies []*proxy.Proxy, size int, report *result.Report) (running []*proxy.Proxy, err error) {
	for _, p := range proxies {
		c.Progress("%s Services: starting %s", result.Thousands(size), p.Name)
		err := p.StartReady(ctx, c.Within)
		if errors.Is(err, proxy.ErrSlow) {
			report.Notes = append(report.Notes, fmt.Sprintf("First packet: %s had not programmed %s Services with an endpoint each after %s, and is left out from there on.", p.Name, result.Thousands(size), c.Within))
			p.Stop()
			continue
		}
		if err != nil {
			return nil, err
		}
		running = append(running, p)
	}
	return running, nil
}

// round opens connections through one proxy.
func (c First) round(p *proxy.Proxy, have []*control.Placed, size, round int) (*hdrhistogram.Histogram, error) {
	random := rand.New(rand.NewPCG(uint64(size), uint64(round)))
	var targets []netip.AddrPort
	for range c.Dials {
		s := have[random.IntN(len(have))]
		to := s.ClusterIP(4, 0)
		if !p.Runs() {
			to = netip.AddrPortFrom(p.Remote.Addr(4), load.EchoPort)
		}
		targets = append(targets, to)
	}
	if _, err := p.Pod.Run(load.Job{Kind: load.Dial, Targets: targets[:c.Dials/4]}); err != nil { // its turn begins warm
		return nil, err
	}
	if err := p.Begin(); err != nil {
		return nil, err
	}
	o, err := p.Pod.Run(load.Job{Kind: load.Dial, Targets: targets})
	if err != nil {
		return nil, err
	}
	if o.Failed > 0 {
		return nil, fmt.Errorf("%d of %d connections failed, the first: %s", o.Failed, c.Dials, o.Error)
	}
	return o.Histogram(), p.Prove(o.Requests)
}
