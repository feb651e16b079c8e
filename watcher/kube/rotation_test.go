package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/transport"
)

// What the agent logs in with is replaced while it runs: kubelet writes a new
// token to the same file, others new certificates.

// pair is a certificate of nobody but itself, and its key.
type pair struct {
	tls       tls.Certificate
	cert, key []byte
}

func newPair(t *testing.T, name string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"example.com"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(50, 0, 0), // a bubble begins in 2000
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	bytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := pair{cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bytes})}
	if p.tls, err = tls.X509KeyPair(p.cert, p.key); err != nil {
		t.Fatal(err)
	}
	return p
}

// secured is an API server whose certificate may be replaced, and a kubeconfig for it.
type secured struct {
	*httptest.Server
	dir     string
	current atomic.Pointer[pair]
}

// newSecured starts a server. The kubeconfig names the files ca and, of user,
// others of the folder.
func newSecured(t *testing.T, user string, h http.HandlerFunc) *secured {
	t.Helper()
	s := &secured{dir: t.TempDir(), Server: httptest.NewUnstartedServer(h)}
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{s.current.Load().tls}}, nil
	}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	p := newPair(t, "server")
	s.current.Store(&p)
	s.write(t, "ca", p.cert)
	s.write(t, "kubeconfig", fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "https://example.com", certificate-authority: ca}}],
		contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {%s}}]}`, user))
	return s
}

// write replaces a file, as who mounts Secrets does: at once.
func (s *secured) write(t *testing.T, name string, data []byte) {
	t.Helper()
	fresh := filepath.Join(s.dir, name+".new")
	if err := os.WriteFile(fresh, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, filepath.Join(s.dir, name)); err != nil {
		t.Fatal(err)
	}
}

func (s *secured) source(t *testing.T) *Source {
	t.Helper()
	source, err := New(Options{Kubeconfig: filepath.Join(s.dir, "kubeconfig"), NodeName: "node1", Log: slog.New(slog.DiscardHandler),
		Servers: []string{s.Listener.Addr().String()}, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// ask returns what the API server says of who asks.
func (s *Source) ask(t *testing.T) string {
	t.Helper()
	text, err := s.core.Get().AbsPath("/").Do(t.Context()).Raw()
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestTokenIsFollowed: a token file is read again after at most a minute.
func TestTokenIsFollowed(t *testing.T) {
	s := newSecured(t, "tokenFile: token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // else the bubble's clock would wait for the connection
		_, _ = io.WriteString(w, r.Header.Get("Authorization"))
	})
	s.write(t, "token", []byte("one"))
	synctest.Test(t, func(t *testing.T) {
		source := s.source(t)
		for _, token := range []string{"one", "two", "three"} {
			s.write(t, "token", []byte(token))
			time.Sleep(time.Minute)
			if got := source.ask(t); got != "Bearer "+token {
				t.Errorf("the request says %q; the file has %q for a minute", got, token)
			}
		}
	})
}

// TestCertificateAuthorityIsFollowed: the file of certificate authorities is read
// again after at most five minutes.
func TestCertificateAuthorityIsFollowed(t *testing.T) {
	s := newSecured(t, "token: t", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, "well")
	})
	synctest.Test(t, func(t *testing.T) {
		source := s.source(t)
		if got := source.ask(t); got != "well" {
			t.Fatal(got)
		}
		p := newPair(t, "next")
		s.current.Store(&p)
		s.write(t, "ca", p.cert)
		time.Sleep(5 * time.Minute)
		if got := source.ask(t); got != "well" {
			t.Errorf("the API server's certificate is in the file for five minutes: %s", got)
		}
	})
}

// TestClientCertificateIsFollowed: new connections have the new certificate, and
// those that exist are closed, which is how a watch gets it.
func TestClientCertificateIsFollowed(t *testing.T) {
	before := transport.CertCallbackRefreshDuration
	transport.CertCallbackRefreshDuration = 50 * time.Millisecond
	t.Cleanup(func() { transport.CertCallbackRefreshDuration = before })
	s := newSecured(t, "client-certificate: cert, client-key: key", func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 1 {
			_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		}
		if r.URL.Path == "/watch" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	})
	login := func(name string) {
		p := newPair(t, name)
		s.write(t, "key", p.key)
		s.write(t, "cert", p.cert)
	}
	login("one")
	source := s.source(t)
	if got := source.ask(t); got != "one" {
		t.Fatalf("the client's certificate is of %q", got)
	}
	watch, err := source.core.Get().AbsPath("/watch").Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Close() }()
	login("two")
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, watch)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the API server has ended the watch, not the client")
		}
	case <-time.After(time.Minute):
		t.Fatal("a watch goes on with the certificate that was replaced")
	}
	if got := source.ask(t); got != "two" {
		t.Errorf("after the files were replaced the client's certificate is of %q", got)
	}
}
