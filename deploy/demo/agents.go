package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/switchyard-io/switchyard/internal/netlab"
)

const (
	healthAddr  = "127.0.0.1:10256" // on each node
	metricsAddr = "127.0.0.1:10249"
	readyTime   = 20 * time.Second // most that an agent may take to its first /readyz
	stopTime    = 3 * time.Second  // most that it may take to end by itself
	logLines    = 12               // of an agent in trouble
)

// agents are the processes of Switchyard, one on each node.
type agents struct {
	binary, backend, dir string

	mu      sync.Mutex
	stopped bool
	all     []*agentProcess
}

type agentProcess struct {
	node   *netlab.Node
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// start starts the agent on a node.
func (a *agents) start(node *netlab.Node, manifests string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return errors.New("the demo is over")
	}
	p := &agentProcess{node: node, log: filepath.Join(a.dir, node.Name+".log"), exited: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("making the log of the agent on %s: %w", node.Name, err)
	}
	defer func() { _ = log.Close() }() // the agent has its own
	var cidrs []string
	for _, c := range netlab.ClusterCIDRs() {
		cidrs = append(cidrs, c.String())
	}
	p.cmd = exec.Command(a.binary, append([]string{"run", "--backend=" + a.backend, "--manifests=" + manifests,
		"--hostname-override=" + node.Name, "--cluster-cidr=" + strings.Join(cidrs, ","),
		"--socket=" + filepath.Join(a.dir, node.Name+".sock"),
		"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr}, ebpfFlags(node)...)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which stops its agents
	if err := node.Start(p.cmd); err != nil {
		return err
	}
	a.all = append(a.all, p)
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	return nil
}

// ebpfFlags keep the nodes apart, which share a kernel here: a real node needs
// none of them.
func ebpfFlags(node *netlab.Node) []string {
	return []string{
		"--ebpf-pin-dir=" + node.PinDir,
		"--ebpf-cgroup-root=" + node.CgroupRoot,
	}
}

// stop ends all agents. It may be called more than once.
func (a *agents) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	for _, p := range a.all {
		p.signal(syscall.SIGTERM)
	}
	patience, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	for _, p := range a.all {
		select {
		case <-p.exited:
		case <-patience.Done():
			p.signal(syscall.SIGKILL)
			<-p.exited
		}
	}
	a.all = nil
}

// signal is for a process that may have ended.
func (p *agentProcess) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// ready waits until every agent says that its node's kernel forwards what is wanted.
func (a *agents) ready(ctx context.Context) error {
	a.mu.Lock()
	all := a.all
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for _, p := range all {
		if err := p.ready(ctx); err != nil {
			return fmt.Errorf("the agent on %s: %w; the end of its log:\n%s", p.node.Name, err, p.lastLines())
		}
	}
	return nil
}

func (p *agentProcess) ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("never asked")
	for {
		select {
		case <-p.exited:
			return errors.New("it ended by itself")
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", last)
		case <-tick.C:
		}
		if _, last = get(p.node, healthAddr, "/readyz"); last == nil {
			return nil
		}
	}
}

func (p *agentProcess) lastLines() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-logLines):], "\n")
}

// get asks a server on a node from the node itself. Other answers than 200 are
// errors.
func get(node *netlab.Node, addr, path string) (body string, err error) {
	err = node.Do(func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, addr); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			return err
		}
		if body = strings.TrimSpace(string(b)); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s says %s: %s", path, resp.Status, body)
		}
		return nil
	})
	return body, err
}
