package checks

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cluster"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
)

//go:embed objects.yaml
var objects string

// What objects.yaml says, for the checks.
const (
	namespace   = "lab"
	port        = 80
	nodePort    = 30080
	nodeUDP     = 30081
	nodeEmpty   = 30082
	nodeLocal   = 30083
	nodeIngress = 30084
)

// vip is a Service's ClusterIP in each family.
type vip struct{ v4, v6 netip.Addr }

// suite is what the checks share: where requests come from and go to.
type suite struct {
	lab              *cluster.Lab
	pods             []load.Place // one on each node, in the order of nodes
	nodes            []load.Place
	ext              load.Place
	self             load.Place // the pod behind Service solo
	web, solo, empty vip
	here             vip // of the first node's Pods alone
}

// deploy creates the objects, waits for their Pods and finds its way into them.
func (s *suite) deploy(ctx context.Context) error {
	// An earlier run's objects may still be on their way out.
	if _, err := s.lab.Kubectl(ctx, nil, "delete", "namespace", namespace, "--ignore-not-found", "--timeout=60s"); err != nil {
		return err
	}
	if _, err := s.lab.Kubectl(ctx, strings.NewReader(objects), "apply", "-f", "-"); err != nil {
		return err
	}
	for _, what := range []string{"deployment/web", "deployment/solo", "deployment/here", "daemonset/client"} {
		if err := s.rolledOut(ctx, what); err != nil {
			return err
		}
	}
	if err := s.findPlaces(ctx); err != nil {
		return err
	}
	for name, v := range map[string]*vip{"web": &s.web, "solo": &s.solo, "empty": &s.empty, "here": &s.here} {
		var err error
		if v.v4, v.v6, err = s.lab.ClusterIPs(ctx, namespace, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) findPlaces(ctx context.Context) error {
	s.ext = s.lab.OutsidePlace()
	clients, err := s.lab.Pods(ctx, namespace, "app=client")
	if err != nil {
		return err
	}
	for _, n := range s.lab.Topology.Nodes {
		s.nodes = append(s.nodes, s.lab.NodePlace(n))
		for _, p := range clients {
			if p.Node != n.Name {
				continue
			}
			place, err := s.lab.PodPlace(p)
			if err != nil {
				return err
			}
			s.pods = append(s.pods, place)
		}
	}
	if len(s.pods) != len(s.nodes) {
		return fmt.Errorf("finding the clients: %d Pods on %d nodes", len(s.pods), len(s.nodes))
	}
	solo, err := s.lab.Pods(ctx, namespace, "app=solo")
	if err != nil {
		return err
	}
	if len(solo) != 1 {
		return fmt.Errorf("finding Service solo's Pod: %d Pods", len(solo))
	}
	s.self, err = s.lab.PodPlace(solo[0])
	return err
}

// remove deletes what deploy made, in the background: the lab may be going down.
func (s *suite) remove(ctx context.Context) {
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	_, _ = s.lab.Kubectl(ctx, nil, "delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
}

func (s *suite) rolledOut(ctx context.Context, what string) error {
	_, err := s.lab.Kubectl(ctx, nil, "rollout", "status", what, "-n", namespace, "--timeout=90s")
	return err
}

// replicas is how many Pods web is to have.
func (s *suite) replicas(ctx context.Context) (int, error) {
	out, err := s.lab.Kubectl(ctx, nil, "get", "deployment/web", "-n", namespace, "-o", "jsonpath={.spec.replicas}")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(out))
}

func (s *suite) scale(ctx context.Context, replicas int) error {
	_, err := s.lab.Kubectl(ctx, nil, "scale", "deployment/web", "-n", namespace, fmt.Sprintf("--replicas=%d", replicas))
	return err
}

// settled waits until web has exactly so many Pods, all ready and none ending,
// and gives their names.
func (s *suite) settled(ctx context.Context, replicas int) ([]string, error) {
	const limit = 60 * time.Second
	var names []string
	err := cluster.Wait(ctx, fmt.Sprintf("%d Pods of Deployment web", replicas), limit, func(ctx context.Context) error {
		names = nil
		pods, err := s.lab.Pods(ctx, namespace, "app=web")
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Ending || !p.Ready {
				return errors.New("Pod " + p.Name + " is starting or ending")
			}
			names = append(names, p.Name)
		}
		if len(names) != replicas {
			return fmt.Errorf("there are %d", len(names))
		}
		return nil
	})
	return names, err
}
