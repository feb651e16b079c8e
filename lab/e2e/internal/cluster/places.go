package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/load"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/pki"
)

// OutsidePlace is where clients run that are no part of the cluster.
func (l *Lab) OutsidePlace() load.Place {
	return l.place("ext", network.Path(Outside), group)
}

// NodePlace is where n's own programs run.
func (l *Lab) NodePlace(n Node) load.Place {
	return l.place(n.Name, network.Path(n.Namespace()), n.system())
}

func (l *Lab) place(name, namespace, group string) load.Place {
	return load.Place{Name: name, Namespace: namespace, Cgroup: l.cgroups.Path(group), Cgroups1: l.cgroups.V1Paths(group)}
}

// PodPlace is where the containers of p run.
func (l *Lab) PodPlace(p Pod) (load.Place, error) {
	// A process's cgroups name the pod that it belongs to.
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return load.Place{}, fmt.Errorf("finding pod %s: %w", p.Name, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), "/pod"+p.UID+"/") {
			continue // not of this pod, or it has ended
		}
		// Of the v1 groups the client needs no more than its share of the
		// processors, and that is the node's.
		place := l.place("pod on "+p.Node, filepath.Join(filepath.Dir(file), "ns", "net"), systemOn(p.Node))
		place.Cgroup = l.cgroups.Path(unified(string(data)))
		return place, nil
	}
	return load.Place{}, fmt.Errorf("finding pod %s: no process runs in its cgroup", p.Name)
}

// unified is the cgroup v2 path in a process's list of cgroups.
func unified(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	return "/"
}

// CA is the file of the authority that signed the API server's certificate.
func (l *Lab) CA() string { return pki.Paths(l.path("pki")).CA }

// Pod is what the checks use of a Kubernetes Pod.
type Pod struct {
	Name, UID, Node string
	Ready           bool
	Ending          bool // it was told to end
}

// Pods lists the Pods of namespace that selector matches.
func (l *Lab) Pods(ctx context.Context, namespace, selector string) ([]Pod, error) {
	out, err := l.Kubectl(ctx, nil, "get", "pods", "-n", namespace, "-l", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	return parsePods(out)
}

func parsePods(list []byte) ([]Pod, error) {
	var parsed struct {
		Items []struct {
			Metadata struct {
				Name, UID         string
				DeletionTimestamp *string
			}
			Spec   struct{ NodeName string }
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal(list, &parsed); err != nil {
		return nil, fmt.Errorf("reading the list of Pods: %w", err)
	}
	var pods []Pod
	for _, item := range parsed.Items {
		p := Pod{
			Name: item.Metadata.Name, UID: item.Metadata.UID, Node: item.Spec.NodeName,
			Ending: item.Metadata.DeletionTimestamp != nil,
		}
		for _, c := range item.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				p.Ready = true
			}
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// ClusterIPs gives a Service's addresses, IPv4 first.
func (l *Lab) ClusterIPs(ctx context.Context, namespace, service string) (v4, v6 netip.Addr, err error) {
	out, err := l.Kubectl(ctx, nil, "get", "service", service, "-n", namespace, "-o", "jsonpath={.spec.clusterIPs[*]}")
	if err != nil {
		return v4, v6, err
	}
	for _, word := range strings.Fields(string(out)) {
		addr, err := netip.ParseAddr(word)
		if err != nil {
			return v4, v6, fmt.Errorf("reading the addresses of Service %s/%s: %w", namespace, service, err)
		}
		if addr.Is4() {
			v4 = addr
		} else {
			v6 = addr
		}
	}
	if !v4.IsValid() && !v6.IsValid() {
		return v4, v6, errors.New("Service " + namespace + "/" + service + " has no address")
	}
	return v4, v6, nil
}
