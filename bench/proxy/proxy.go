package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

// The ids that servers answer with.
const (
	LocalID  byte = 'a' // the pod on the proxy's own node
	RemoteID byte = 'b' // the pod on the other node
)

// Config is the same for all that are compared.
type Config struct {
	Dir     string            // for logs
	Plane   *control.Plane    // the API server; all watch the same one
	Program map[string]string // paths of Switchyard and KubeProxy
	Log     *slog.Logger
	Flags   []string // more of Switchyard's
}

// Proxy is one of those that are compared, with its nodes, pods and clients.
//
//	Pod, Local ── Node ──┐
//	                   router ── Outside
//	    Remote ── node-b ┘
type Proxy struct {
	Kind
	Lab           *netlab.Lab
	Node          *netlab.Node
	Pod, Outside  *load.Host // clients
	OnNode        *load.Host // a client on the node itself
	Local, Remote *load.Host // servers
	cfg           Config
	kubeconfig    string
	before        float64
	process       *netlab.Program // nil: it does not run
	starts        int
	undo          func() bool
}

// New makes a proxy's lab. It is not running yet.
func New(ctx context.Context, k Kind, cfg Config) (*Proxy, error) {
	lab, err := netlab.New(ctx, netlab.Config{Nodes: 2, Pods: 2, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	p := &Proxy{Kind: k, Lab: lab, Node: lab.Nodes[0], cfg: cfg}
	// An interrupt ends what a step is waiting for.
	p.undo = context.AfterFunc(ctx, func() { _ = lab.Close() }) // Close tells
	if err := p.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing %s: %w", k.Name, err), p.Close())
	}
	return p, nil
}

func (p *Proxy) prepare() (err error) {
	if p.kubeconfig, err = p.cfg.Plane.Connect(p.Node.Host); err != nil {
		return err
	}
	for _, h := range []struct {
		name string
		at   **load.Host
		id   byte // 0: no server
	}{{"a1", &p.Local, LocalID}, {"b1", &p.Remote, RemoteID}, {"a2", &p.Pod, 0}, {"node-a", &p.OnNode, 0}, {"outside", &p.Outside, 0}} {
		host := p.Lab.Host(h.name)
		if err := host.Do(widenPorts); err != nil {
			return err
		}
		if *h.at, err = load.Start(host); err != nil {
			return err
		}
		if err := (*h.at).Pin(runtime.NumCPU() - 1); err != nil {
			return err
		}
		if h.id == 0 {
			continue
		}
		if err := (*h.at).Serve(h.id); err != nil {
			return err
		}
	}
	return nil
}

// widenPorts lets a client open many connections in a short time.
func widenPorts() error {
	for name, value := range map[string]string{"ip_local_port_range": "10000 65000", "tcp_tw_reuse": "1"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
			return fmt.Errorf("setting net.ipv4.%s: %w", name, err)
		}
	}
	return nil
}

// Endpoints are the two servers as a Service's endpoints.
func (p *Proxy) Endpoints() (local, remote control.Endpoint) {
	return control.Endpoint{Addrs: p.Local.Addrs, Node: p.Lab.Nodes[0].Name}, control.Endpoint{Addrs: p.Remote.Addrs, Node: p.Lab.Nodes[1].Name}
}

// Runs tells whether there is something to run at all.
func (p *Proxy) Runs() bool { return p.Program != "" }

// Translates tells whether a client reaches endpoints through Services.
func (p *Proxy) Translates() bool { return p.Runs() || p.base() == OneRule }

// Start starts the proxy's process; Ready waits for it.
func (p *Proxy) Start() error {
	if !p.Runs() {
		return nil
	}
	p.starts++
	log := filepath.Join(p.cfg.Dir, fmt.Sprintf("%s-%s-%d.log", p.Program, p.Lab.Name, p.starts))
	cmd := exec.Command(cmp.Or(p.Binary, p.cfg.Program[p.Program]), p.args()...)
	var err error
	p.process, err = p.Node.StartProgram(cmd, log)
	return err
}

func (p *Proxy) args() []string {
	var cidrs []string
	for _, c := range netlab.ClusterCIDRs() {
		cidrs = append(cidrs, c.String())
	}
	// Both programs know these by the same names.
	args := []string{"--kubeconfig=" + p.kubeconfig, "--hostname-override=" + p.Node.Name, "--cluster-cidr=" + strings.Join(cidrs, ","),
		"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr, "--profiling=true",
		"--conntrack-max-per-core=0"} // the limit belongs to the machine's own namespace
	if p.Program == KubeProxy {
		return append(append(args, "--proxy-mode="+p.Mode), p.Flags...)
	}
	args = append([]string{"run", "--backend=" + p.Mode}, args...)
	// A real node needs none of these: here nodes share a kernel.
	args = append(args, "--socket="+filepath.Join(p.cfg.Dir, p.Lab.Name+".sock"), "--ebpf-pin-dir="+p.Node.PinDir, "--ebpf-cgroup-root="+p.Node.CgroupRoot)
	return append(append(args, p.cfg.Flags...), p.Flags...)
}

// Stop ends the proxy's process; forwarding stays as it is.
func (p *Proxy) Stop() {
	if p.process != nil {
		_ = p.Resume() // or it would not hear that it is to end
		p.process.Stop(netlab.Patient(stopTime))
		p.process = nil
	}
}

// Close ends all and removes the lab.
func (p *Proxy) Close() error {
	p.undo()
	p.Stop()
	return p.Lab.Close()
}

// NodePort is where the node answers to a NodePort.
func (p *Proxy) NodePort(version int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.Node.Addr(version), port)
}
