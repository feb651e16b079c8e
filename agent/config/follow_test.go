package config

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// configMap is a directory as kubelet mounts a ConfigMap: the file is a link to
// one behind ..data, a link that is replaced.
type configMap struct {
	t   *testing.T
	dir string
	n   int
}

func (m *configMap) set(text string) string {
	m.t.Helper()
	m.n++
	version := filepath.Join(m.dir, "..v"+string(rune('0'+m.n)))
	file, data, next := filepath.Join(m.dir, "config.conf"), filepath.Join(m.dir, "..data"), filepath.Join(m.dir, "..data_tmp")
	for _, do := range []func() error{
		func() error { return os.Mkdir(version, 0o700) },
		func() error { return os.WriteFile(filepath.Join(version, "config.conf"), []byte(text), 0o600) },
		func() error { return os.Symlink(version, next) },
		func() error { return os.Rename(next, data) },
	} {
		if err := do(); err != nil {
			m.t.Fatal(err)
		}
	}
	_ = os.Symlink("..data/config.conf", file) // there already, but the first time
	return file
}

func TestFollowsAConfigMap(t *testing.T) {
	m := &configMap{t: t, dir: t.TempDir()}
	file := m.set(kubeProxyHead)
	o := &Options{}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse([]string{"--config", file}); err != nil {
		t.Fatal(err)
	}
	now, err := o.Complete()
	if err != nil {
		t.Fatal(err)
	}
	log, applied, done := &logBuffer{}, make(chan *Config, 9), make(chan error, 1)
	f := &Follower{
		Log: slog.New(slog.NewTextHandler(log, nil)),
		Load: func() (*Config, error) {
			c, err := o.Complete()
			if err != nil {
				return nil, err
			}
			return c, c.Validate(backends)
		},
		Apply: func(c *Config) { applied <- c },
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- f.Run(ctx, now) }()
	time.Sleep(settle / 2)

	t.Run("what a running agent can", func(t *testing.T) {
		m.set(kubeProxyHead + "conntrack: {maxPerCore: 7}\nlogging: {verbosity: 4}\n")
		select {
		case c := <-applied:
			if *c.KubeProxy.Conntrack.MaxPerCore != 7 || c.KubeProxy.Logging.Verbosity != 4 {
				t.Errorf("applied %+v", c.KubeProxy)
			}
		case <-time.After(time.Minute):
			t.Fatal("never")
		}
	})
	t.Run("what is wrong is not in force", func(t *testing.T) {
		m.set(kubeProxyHead + "mode: userspace\n")
		for deadline := time.Now().Add(time.Minute); !log.has("what is in force stays"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("never")
			}
		}
	})
	t.Run("what says the same", func(*testing.T) {
		m.set("# another word\n" + kubeProxyHead + "conntrack: {maxPerCore: 7}\nlogging: {verbosity: 4}\n")
		time.Sleep(3 * settle)
	})
	t.Run("the rest ends the agent", func(t *testing.T) {
		m.set(kubeProxyHead + "clusterCIDR: 10.0.0.0/8\nconntrack: {maxPerCore: 7}\nlogging: {verbosity: 4}\n")
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "config.conf changed (clusterCIDR); ending") {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("never")
		}
		if len(applied) > 0 {
			t.Error("applied once more")
		}
	})
}
