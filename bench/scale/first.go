package scale

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/paired"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// First says how first packets are measured.
type First struct {
	Rounds   int
	Slice    time.Duration
	Within   time.Duration
	Progress Progress
}

// Side is nodes that watch one API server, which has so many Services.
type Side struct {
	Plane    *control.Plane
	Proxies  []*proxy.Proxy
	Services int
}

// lane is connections through one proxy.
type lane struct {
	proxy    *proxy.Proxy
	services int
	session  *load.Session
}

// Run opens TCP connections to Services picked at random, through all proxies of
// all sides in turn: few Services and many stand side by side.
func (c First) Run(ctx context.Context, sides []Side, report *result.Report) (err error) {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			_, closeErr := l.session.Close()
			err = errors.Join(err, closeErr)
		}
	}()
	for _, s := range sides {
		more, err := c.open(ctx, s, report)
		if err != nil {
			return err
		}
		lanes = append(lanes, more...)
	}
	var columns []paired.Column
	for _, l := range lanes {
		columns = append(columns, paired.Column{Name: fmt.Sprintf("%s, %d Services", l.proxy.Name, l.services), Slice: func() (paired.Sample, error) { return l.measure(c.Slice) }})
	}
	c.Progress("first packets: %d rounds", c.Rounds)
	return paired.Rounds(ctx, c.Rounds, columns, func(i int, s paired.Sample) {
		l := lanes[i]
		report.Add(result.Series{Key: key(result.FirstPacket, result.TimeToConnect, result.Mean, l.proxy, l.services), Unit: "µs"}, s[result.Mean])
	})
}

// open creates a side's Services, starts its proxies and opens a session through
// each. Those that take too long are left out.
func (c First) open(ctx context.Context, s Side, report *result.Report) (lanes []*lane, err error) {
	c.Progress("creating %s Services", result.Thousands(s.Services))
	_, there := s.Proxies[0].Endpoints()
	have, err := fill(ctx, s.Plane, nil, s.Services, func(i int) control.Service {
		return control.Service{Name: fmt.Sprintf("fill-%d", i), Ports: tcp(), Endpoints: []control.Endpoint{there}}
	})
	if err != nil {
		return nil, err
	}
	targets := pick(have)
	for _, p := range s.Proxies {
		c.Progress("%s Services: starting %s", result.Thousands(s.Services), p.Name)
		err := p.StartReady(ctx, c.Within)
		if errors.Is(err, proxy.ErrSlow) {
			report.Notes = append(report.Notes, fmt.Sprintf("First packet: %s had not programmed %s Services with an endpoint each after %s, and is left out at that number.", p.Name, result.Thousands(s.Services), c.Within))
			report.Add(result.Series{Key: key(result.FirstPacket, result.TimeToConnect, result.Mean, p, s.Services), Unit: "µs", Over: true}, 0)
			p.Stop()
			continue
		}
		if err != nil {
			return nil, err
		}
		l, err := open(ctx, p, have, targets)
		if err != nil {
			return nil, fmt.Errorf("%s, %d Services: %w", p.Name, s.Services, err)
		}
		lanes = append(lanes, &lane{p, s.Services, l})
	}
	return lanes, nil
}

// pick picks Services in an order of chance, the same one for each proxy.
func pick(have []*control.Placed) []netip.AddrPort {
	const most = 5000
	random := rand.New(rand.NewPCG(1, uint64(len(have))))
	var targets []netip.AddrPort
	for _, i := range random.Perm(len(have)) {
		targets = append(targets, have[i].ClusterIP(4, 0))
	}
	return targets[:min(most, len(targets))]
}

// open opens a session, and proves which way it goes.
func open(ctx context.Context, p *proxy.Proxy, have []*control.Placed, targets []netip.AddrPort) (*load.Session, error) {
	if !p.Translates() {
		targets = []netip.AddrPort{netip.AddrPortFrom(p.Remote.Addr(4), load.EchoPort)}
	}
	if err := p.Rule(ctx, have); err != nil {
		return nil, err
	}
	session, err := p.Pod.Open(load.Job{Kind: load.Connects, Targets: targets})
	if err != nil {
		return nil, err
	}
	if err := p.Begin(); err != nil {
		return nil, err
	}
	s, err := session.Slice(time.Millisecond)
	if err != nil {
		return nil, err
	}
	return session, p.Prove(s.Done)
}

// measure connects for one slice.
func (l *lane) measure(d time.Duration) (paired.Sample, error) {
	if err := l.proxy.ForgetFlows(); err != nil {
		return nil, err
	}
	s, err := l.session.Slice(d)
	if err != nil {
		return nil, err
	}
	return paired.Sample{result.Mean: s.Each()}, nil
}

// Growing are the kinds that are worth measuring with many Services: what the
// others do with a first packet does not depend on their number.
func Growing(kinds []proxy.Kind) []proxy.Kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k proxy.Kind) bool { return k.Program == "" })
}
