package proxy

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

const (
	healthAddr  = "127.0.0.1:10256" // on the node
	metricsAddr = "127.0.0.1:10249"
	stopTime    = 5 * time.Second // most that a proxy may take to end by itself
	logLines    = 8               // of a proxy in trouble
)

// ErrSlow says that a proxy did not become ready in the time that it had.
var ErrSlow = errors.New("not ready in time")

// StartReady starts the proxy's process and waits until it is ready.
func (p *Proxy) StartReady(ctx context.Context, within time.Duration) error {
	if err := p.Start(); err != nil {
		return err
	}
	return p.Ready(ctx, within)
}

// saysReady asks Switchyard.
func (p *Proxy) saysReady(ctx context.Context) bool {
	_, err := p.Node.Get(ctx, healthAddr, "/readyz")
	return err == nil
}

// hasSynced asks kube-proxy when it last wrote its rules. Its /healthz says yes
// before the first time.
func (p *Proxy) hasSynced(context.Context) bool {
	m, err := p.Metrics()
	if err != nil {
		return false
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		if m.Sum("kubeproxy_sync_proxy_rules_last_timestamp_seconds", `ip_family="`+family+`"`) == 0 {
			return false
		}
	}
	return true
}

// Ready waits until the proxy says that the kernel forwards what it knows of.
func (p *Proxy) Ready(ctx context.Context, within time.Duration) error {
	if !p.Runs() {
		return nil
	}
	is, look := p.saysReady, 5*time.Millisecond
	if p.Program == KubeProxy {
		is, look = p.hasSynced, time.Second // to ask it costs it time
	}
	for end := time.Now().Add(within); ; {
		if is(ctx) {
			return nil
		}
		select {
		case <-p.process.Exited():
			return fmt.Errorf("%s has ended by itself; the end of its log:\n%s", p.Name, p.process.LastLines(logLines))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: %w: %s", p.Name, ErrSlow, within)
		}
	}
}

// Pause stops the proxy's process where it is, so that another one's turn is not
// disturbed. What it watches waits in its connections' buffers.
func (p *Proxy) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (p *Proxy) Resume() error { return p.signal(syscall.SIGCONT) }

func (p *Proxy) signal(s syscall.Signal) error {
	if p.process == nil {
		return nil
	}
	if err := p.process.Cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("sending %s to %s: %w", s, p.Name, err)
	}
	return nil
}
