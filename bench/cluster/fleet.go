package cluster

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// Kinds of proxies.
const (
	Switchyard = "switchyard"
	// SwitchyardGzip lets the API server compress watches, as client-go does.
	SwitchyardGzip = "switchyard+gzip"
	// SwitchyardLists asks for lists, as clients did before lists were streamed.
	SwitchyardLists = "switchyard+lists"
	// SwitchyardHTTP1 has a connection for each watch instead of a stream.
	SwitchyardHTTP1 = "switchyard+http1"
	// KubeProxy is kubemark's hollow proxy: kube-proxy with a fake backend, without
	// the watch of its Node.
	KubeProxy = "kube-proxy"
)

// Kinds are all kinds.
func Kinds() []string {
	return []string{Switchyard, SwitchyardGzip, SwitchyardLists, SwitchyardHTTP1, KubeProxy}
}

// environment is what client-go reads in the process of agents of a kind.
func environment(kind string) []string {
	switch kind {
	case SwitchyardLists:
		return []string{"KUBE_FEATURE_WatchListClient=false"}
	case SwitchyardHTTP1:
		return []string{"DISABLE_HTTP2=true"}
	}
	return nil
}

// fleet is many proxies of one kind.
type fleet interface {
	// synced returns how many have synced a change of this time or a later one. The
	// zero time counts any Sync.
	synced(since time.Time) (int, error)
	// take returns the times from a change to each Sync of it. Nil means that they
	// cannot be known.
	take() (*hdrhistogram.Histogram, error)
	used() (control.Process, error)
	stop()
}

// agentFleet is agents in one process.
type agentFleet struct{ *netlab.Process }

// startAgents starts agents on a host.
func startAgents(h *netlab.Host, kind, kubeconfig string, n int) (fleet, error) {
	p, err := h.StartRole(roleName, environment(kind))
	if err != nil {
		return nil, err
	}
	return agentFleet{p}, p.Call("Agents.Start", StartArgs{kubeconfig, n, kind == SwitchyardGzip}, &struct{}{})
}

func (f agentFleet) synced(since time.Time) (n int, err error) {
	err = f.Call("Agents.Synced", since, &n)
	return n, err
}

func (f agentFleet) take() (*hdrhistogram.Histogram, error) {
	var times hdrhistogram.Snapshot
	if err := f.Call("Agents.Take", struct{}{}, &times); err != nil {
		return nil, err
	}
	return hdrhistogram.Import(&times), nil
}

func (f agentFleet) used() (control.Process, error) { return control.Used(f.Cmd.Process.Pid) }

func (f agentFleet) stop() { f.Kill() }

// hollowFleet is a process for each proxy. They do not say what they have synced.
type hollowFleet []*netlab.Program

// startHollow starts hollow proxies on a host.
func startHollow(h *netlab.Host, program, kubeconfig, dir string, n int) (fleet, error) {
	var f hollowFleet
	for i := range n {
		cmd := exec.Command(program, "--morph=proxy", "--kubeconfig="+kubeconfig, "--name="+nodeName(i))
		// Many processes share few cores: one thread each, and less garbage collection.
		cmd.Env = []string{"GOMAXPROCS=1"}
		p, err := h.StartProgram(cmd, filepath.Join(dir, fmt.Sprintf("hollow-%d.log", i)))
		if err != nil {
			f.stop()
			return nil, err
		}
		f = append(f, p)
	}
	return f, nil
}

func (f hollowFleet) synced(time.Time) (int, error) {
	for _, p := range f {
		select {
		case <-p.Exited():
			return 0, errors.New("a hollow proxy has ended; the end of its log:\n" + p.LastLines(logLines))
		default:
		}
	}
	return len(f), nil
}

func (hollowFleet) take() (*hdrhistogram.Histogram, error) { return nil, nil }

func (f hollowFleet) used() (control.Process, error) {
	var sum control.Process
	for _, p := range f {
		used, err := control.Used(p.Cmd.Process.Pid)
		if err != nil {
			return sum, err
		}
		sum.CPU += used.CPU
		sum.Resident += used.Resident
		sum.Peak += used.Peak
	}
	return sum, nil
}

func (f hollowFleet) stop() {
	var all sync.WaitGroup
	for _, p := range f {
		all.Go(func() { p.Stop(0) })
	}
	all.Wait()
}

// nobody is a fleet of none: what the API server takes by itself.
type nobody struct{}

func (nobody) synced(time.Time) (int, error)          { return 0, nil }
func (nobody) take() (*hdrhistogram.Histogram, error) { return load.NewHistogram(), nil }
func (nobody) used() (control.Process, error)         { return control.Process{}, nil }
func (nobody) stop()                                  {}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

// checkKinds reports a kind that there is not.
func checkKinds(kinds []string) error {
	for _, k := range kinds {
		if !slices.Contains(Kinds(), k) {
			return fmt.Errorf("--kinds: there is no %q; there are %s", k, strings.Join(Kinds(), ", "))
		}
	}
	return nil
}
