package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"testing"
)

func TestCreate(t *testing.T) {
	f, err := Create(t.TempDir(), []string{"kubernetes"}, []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate in the authority's file")
	}
	for name, ok := range map[string]bool{"kubernetes": true, "10.0.0.1": true, "fd00::1": true, "10.0.0.2": false} {
		cert, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); (err == nil) != ok {
			t.Errorf("valid for %s: %v, want %v (%v)", name, err == nil, ok, err)
		}
	}
	if a, b := Token(), Token(); a == b {
		t.Error("two tokens are the same")
	}
}
