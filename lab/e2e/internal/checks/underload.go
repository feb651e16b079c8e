package checks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cluster"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

// steady is the load: endless streams from a pod and from the programs of each
// node to the ClusterIP, and from outside to the NodePort of each node.
func (s *suite) steady() []stream {
	const rate = 20
	all := s.everywhere(0)
	for i := range all {
		all[i].to.Rate = rate
	}
	return all
}

// held is connections that stay open: from a pod, a node and outside.
func (s *suite) held() []stream {
	const rate = 10
	var all []stream
	last := len(s.nodes) - 1
	for _, f := range families() {
		clusterIP := to(f.pick(s.web.v4, s.web.v6), port, 0)
		n := s.lab.Topology.Nodes[last]
		all = append(all, stream{s.pods[0], clusterIP}, stream{s.nodes[last], clusterIP},
			stream{s.ext, to(f.pick(n.V4, n.V6), nodePort, 0)})
	}
	for i := range all {
		all[i].to.Name += " over one connection"
		all[i].to.Held, all[i].to.Rate = true, rate
	}
	return all
}

// follow waits until every node sends requests to all of pods and to nothing
// else, or until a request fails. It gives the reports of what it sent meanwhile.
func (s *suite) follow(ctx context.Context, pods []string) ([]load.Report, error) {
	// After the API server was away, clients try again at growing intervals.
	const limit = 45 * time.Second
	// 480 requests miss one of twenty servers by chance once in 10^9 times.
	const count = 80
	var all []load.Report
	for i, n := range s.lab.Topology.Nodes {
		err := cluster.Wait(ctx, "the agent on "+n.Name+" to follow", limit, func(ctx context.Context) error {
			reports, err := exchange(ctx, s.through(i, count))
			all = append(all, reports...)
			if err != nil || failed(reports) {
				return err
			}
			return answered(pods, reports...)
		})
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// change is something that is done to the cluster under load.
type change struct {
	from  int // Pods of web before
	conns []stream
	do    func(context.Context) error // leaves web with so many Pods as to
	to    int
}

// under does c under load, and wants every node to follow.
func (s *suite) under(ctx context.Context, c change) ([]load.Report, error) {
	if _, err := s.settled(ctx, c.from); err != nil {
		return nil, err
	}
	var more []load.Report
	reports, err := during(ctx, append(s.steady(), c.conns...), func(ctx context.Context) error {
		if err := c.do(ctx); err != nil {
			return err
		}
		pods, err := s.settled(ctx, c.to)
		if err != nil {
			return err
		}
		more, err = s.follow(ctx, pods)
		return err
	})
	return append(reports, more...), err
}

// scaling goes from 1 Pod to 20 and back.
func (s *suite) scaling(ctx context.Context) ([]load.Report, error) {
	const few, many = 1, 20
	if err := s.scale(ctx, few); err != nil {
		return nil, err
	}
	var more []load.Report
	reports, err := s.under(ctx, change{from: few, to: few, do: func(ctx context.Context) error {
		if err := s.scale(ctx, many); err != nil {
			return err
		}
		pods, err := s.settled(ctx, many)
		if err != nil {
			return err
		}
		if more, err = s.follow(ctx, pods); err != nil {
			return err
		}
		return s.scale(ctx, few)
	}})
	return append(reports, more...), err
}

// rollingUpdate replaces all Pods.
func (s *suite) rollingUpdate(ctx context.Context) ([]load.Report, error) {
	const replicas = 4
	if err := s.scale(ctx, replicas); err != nil {
		return nil, err
	}
	return s.under(ctx, change{from: replicas, to: replicas, do: func(ctx context.Context) error {
		before, err := s.settled(ctx, replicas)
		if err != nil {
			return err
		}
		if _, err := s.lab.Kubectl(ctx, nil, "rollout", "restart", "deployment/web", "-n", namespace); err != nil {
			return err
		}
		if err := s.rolledOut(ctx, "deployment/web"); err != nil {
			return err
		}
		after, err := s.settled(ctx, replicas)
		for _, name := range after {
			if slices.Contains(before, name) {
				err = errors.Join(err, fmt.Errorf("the update has not replaced Pod %s", name))
			}
		}
		return err
	}})
}

// apiServerRestart has no API server for a while, which nothing but the API may
// notice, and wants the agents to follow again when it is back.
func (s *suite) apiServerRestart(ctx context.Context) ([]load.Report, error) {
	const before, away, after = 4, 5 * time.Second, 5
	return s.under(ctx, change{from: before, to: after, conns: s.held(), do: func(ctx context.Context) error {
		if err := s.lab.StopAPIServer(); err != nil {
			return err
		}
		pause(ctx, away)
		if err := s.lab.StartAPIServer(ctx); err != nil {
			return err
		}
		return s.scale(ctx, after)
	}})
}

// agentRestart kills the agents of all nodes, adds a Pod while there are none,
// and starts them again: the new Pod has to be used then.
func (s *suite) agentRestart(ctx context.Context) ([]load.Report, error) {
	const before, away, after = 5, 3 * time.Second, 6
	return s.under(ctx, change{from: before, to: after, conns: s.held(), do: func(ctx context.Context) error {
		for _, n := range s.lab.Topology.Nodes {
			if err := s.lab.KillAgent(ctx, n); err != nil {
				return err
			}
		}
		if err := s.scale(ctx, after); err != nil {
			return err
		}
		if _, err := s.settled(ctx, after); err != nil {
			return err
		}
		pause(ctx, away)
		for _, n := range s.lab.Topology.Nodes {
			if err := s.lab.StartAgent(ctx, n); err != nil {
				return err
			}
		}
		return nil
	}})
}
