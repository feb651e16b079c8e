package kube

import (
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen is an API server's address that accepts connections.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// closed is an address that refuses connections.
func closed(t *testing.T) string {
	t.Helper()
	l := listen(t)
	_ = l.Close()
	return l.Addr().String()
}

func TestServers(t *testing.T) {
	one, other, down := listen(t), listen(t), closed(t)
	a, b := one.Addr().String(), other.Addr().String()
	for name, c := range map[string]struct {
		addrs []string
		at    int
		lived []time.Duration // of each connection, one after the other
		want  []string        // who they were to
	}{
		"stays with the one that answers":       {[]string{a, b}, 0, []time.Duration{time.Hour, time.Hour}, []string{a, a}},
		"passes over one that refuses":          {[]string{down, b}, 0, []time.Duration{time.Hour, time.Hour}, []string{b, b}},
		"comes round to the first":              {[]string{a, down}, 1, []time.Duration{time.Hour}, []string{a}},
		"goes on where connections do not last": {[]string{a, b}, 0, []time.Duration{time.Second, time.Second, time.Hour}, []string{a, b, a}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &servers{addrs: c.addrs, log: slog.New(slog.DiscardHandler), at: c.at}
			for i, want := range c.want {
				conn, err := s.dial(t.Context(), "tcp", "10.96.0.1:443")
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.RemoteAddr().String(); got != want {
					t.Errorf("connection %d goes to %s, want %s", i, got, want)
				}
				conn.(*connection).since = time.Now().Add(-c.lived[i])
				_ = conn.Close()
			}
		})
	}
}

func TestServersAllDown(t *testing.T) {
	s := newServers([]string{closed(t), closed(t)}, "node1", slog.New(slog.DiscardHandler))
	if _, err := s.dial(t.Context(), "tcp", "10.96.0.1:443"); err == nil || strings.Count(err.Error(), "refused") != 2 {
		t.Errorf("error %v, want what became of each", err)
	}
}

// TestFailOver asks one API server by HTTPS, ends it, and asks again. The name
// that is verified stays the kubeconfig's.
func TestFailOver(t *testing.T) {
	answer := func(name string) *httptest.Server {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
		t.Cleanup(s.Close)
		return s
	}
	first, second := answer("first"), answer("second")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: first.Certificate().Raw})
	dir := t.TempDir()
	files := map[string]string{"ca": string(ca), "kubeconfig": `{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: "https://example.com", certificate-authority: ` + filepath.Join(dir, "ca") + `}}],
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {token: t}}]}`}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Kubeconfig: filepath.Join(dir, "kubeconfig"), NodeName: "node1", Log: slog.New(slog.DiscardHandler),
		Servers: []string{first.Listener.Addr().String(), second.Listener.Addr().String()}}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		text, err := s.core.Get().AbsPath("/").Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	was := ask()
	byName := map[string]*httptest.Server{"first": first, "second": second}
	byName[was].CloseClientConnections()
	byName[was].Close()
	if is := ask(); is == was {
		t.Errorf("the %s server answered after its end", is)
	}
}
