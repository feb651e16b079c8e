package proxy

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
	"strings"
	"syscall"
	"time"

	"github.com/switchyard-io/switchyard/internal/netlab"
)

const (
	healthAddr  = "127.0.0.1:10256" // on the node
	metricsAddr = "127.0.0.1:10249"
	stopTime    = 5 * time.Second // most that a proxy may take to end by itself
	logLines    = 8               // of a proxy in trouble
)

// process is a proxy that runs.
type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

func start(h *netlab.Host, cmd *exec.Cmd, log string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("making a log: %w", err)
	}
	defer func() { _ = f.Close() }() // the process has its own
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the benchmark
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopTime):
		// With what it has started: an iptables-restore may take minutes.
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.exited
	}
}

func (p *process) lastLines() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-logLines):], "\n")
}

// ErrSlow says that a proxy did not become ready in the time that it had.
var ErrSlow = errors.New("not ready in time")

// Ready waits until the proxy says that the kernel forwards what it knows of.
func (p *Proxy) Ready(ctx context.Context, within time.Duration) error {
	if !p.Runs() {
		return nil
	}
	path := "/readyz"
	if p.Program == KubeProxy {
		path = "/healthz" // it has nothing else, and answers after its first sync
	}
	const look = 5 * time.Millisecond
	for end := time.Now().Add(within); ; {
		if _, err := p.get(ctx, healthAddr, path); err == nil {
			return nil
		}
		select {
		case <-p.process.exited:
			return fmt.Errorf("%s has ended by itself; the end of its log:\n%s", p.Name, p.process.lastLines())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: %w: %s", p.Name, ErrSlow, within)
		}
	}
}

// get asks a server of the proxy's from its node. Other answers than 200 are
// errors.
func (p *Proxy) get(ctx context.Context, addr, path string) (body []byte, err error) {
	const limit = 10 * time.Second
	err = p.Node.Do(func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(limit))
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, addr); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if body, err = io.ReadAll(resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s says %s", path, resp.Status)
		}
		return nil
	})
	return body, err
}
