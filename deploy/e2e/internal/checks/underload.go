package checks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-io/switchyard/deploy/e2e/internal/load"
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

// scaling goes from 1 Pod to 10 and back. All 10 have to be used meanwhile, and
// only the last one afterwards.
func (s *suite) scaling(ctx context.Context) ([]load.Report, error) {
	const few, many = 1, 10
	if err := s.scale(ctx, few); err != nil {
		return nil, err
	}
	if _, err := s.settled(ctx, few); err != nil {
		return nil, err
	}
	var all, left []string
	reports, err := during(ctx, s.steady(), func(ctx context.Context) (err error) {
		if err = s.scale(ctx, many); err != nil {
			return err
		}
		if all, err = s.settled(ctx, many); err != nil {
			return err
		}
		// 240 requests per second for 10 servers: each of them has its turn.
		pause(ctx, 3*time.Second)
		if err = s.scale(ctx, few); err != nil {
			return err
		}
		left, err = s.settled(ctx, few)
		return err
	})
	if err != nil {
		return reports, err
	}
	return s.afterwards(ctx, reports, reached(all, reports...), left)
}

// rollingUpdate replaces all Pods. The new ones have to be used, and nothing
// else afterwards.
func (s *suite) rollingUpdate(ctx context.Context) ([]load.Report, error) {
	const replicas = 4
	if err := s.scale(ctx, replicas); err != nil {
		return nil, err
	}
	before, err := s.settled(ctx, replicas)
	if err != nil {
		return nil, err
	}
	var after []string
	reports, err := during(ctx, s.steady(), func(ctx context.Context) error {
		if _, err := s.lab.Kubectl(ctx, nil, "rollout", "restart", "deployment/web", "-n", namespace); err != nil {
			return err
		}
		if err := s.rolledOut(ctx, "deployment/web"); err != nil {
			return err
		}
		after, err = s.settled(ctx, replicas)
		return err
	})
	if err != nil {
		return reports, err
	}
	for _, name := range after {
		if slices.Contains(before, name) {
			err = errors.Join(err, fmt.Errorf("the update has not replaced Pod %s", name))
		}
	}
	return s.afterwards(ctx, reports, errors.Join(err, reached(append(before, after...), reports...)), after)
}

// afterwards sends more requests, which only pods may answer.
func (s *suite) afterwards(ctx context.Context, reports []load.Report, err error, pods []string) ([]load.Report, error) {
	const count = 40
	more, afterErr := exchange(ctx, s.everywhere(count))
	if afterErr == nil {
		afterErr = answered(pods, more...)
	}
	return append(reports, more...), errors.Join(err, afterErr)
}

// apiServerRestart has no API server for a while, which nothing but the API may
// notice, and wants the agents to follow again as soon as it is back.
func (s *suite) apiServerRestart(ctx context.Context) ([]load.Report, error) {
	const before, away, after = 4, 5 * time.Second, 5
	if _, err := s.settled(ctx, before); err != nil {
		return nil, err
	}
	var pods []string
	reports, err := during(ctx, append(s.steady(), s.held()...), func(ctx context.Context) (err error) {
		if err = s.lab.StopAPIServer(); err != nil {
			return err
		}
		pause(ctx, away)
		if err = s.lab.StartAPIServer(ctx); err != nil {
			return err
		}
		if err = s.scale(ctx, after); err != nil {
			return err
		}
		pods, err = s.settled(ctx, after)
		pause(ctx, 3*time.Second)
		return err
	})
	if err != nil {
		return reports, err
	}
	return s.afterwards(ctx, reports, reached(pods, reports...), pods)
}

// agentRestart kills the agents of all nodes, adds a Pod while there are none,
// and starts them again: the new Pod has to be used then.
func (s *suite) agentRestart(ctx context.Context) ([]load.Report, error) {
	const before, away, after = 5, 3 * time.Second, 6
	if _, err := s.settled(ctx, before); err != nil {
		return nil, err
	}
	var pods []string
	reports, err := during(ctx, append(s.steady(), s.held()...), func(ctx context.Context) (err error) {
		for _, n := range s.lab.Topology.Nodes {
			if err = s.lab.KillAgent(n); err != nil {
				return err
			}
		}
		if err = s.scale(ctx, after); err != nil {
			return err
		}
		if pods, err = s.settled(ctx, after); err != nil {
			return err
		}
		pause(ctx, away)
		for _, n := range s.lab.Topology.Nodes {
			if err = s.lab.StartAgent(ctx, n); err != nil {
				return err
			}
		}
		pause(ctx, 3*time.Second)
		return nil
	})
	if err != nil {
		return reports, err
	}
	return s.afterwards(ctx, reports, reached(pods, reports...), pods)
}
