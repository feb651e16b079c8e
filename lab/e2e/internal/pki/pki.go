// Package pki makes the lab's own certificates and keys.
//
// They secure nothing but the traffic between the lab's namespaces and are made
// anew for every start.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Files are what Create writes, each the path of a PEM file.
type Files struct {
	CA             string // certificate that signed Cert
	Cert, Key      string // of the API server
	ServiceAccount string // private key that signs the pods' tokens
}

// Paths gives the files' places in dir.
func Paths(dir string) Files {
	return Files{
		CA:             filepath.Join(dir, "ca.crt"),
		Cert:           filepath.Join(dir, "apiserver.crt"),
		Key:            filepath.Join(dir, "apiserver.key"),
		ServiceAccount: filepath.Join(dir, "service-account.key"),
	}
}

// validity is long for a lab that runs for minutes, and short for a mistake.
const validity = 7 * 24 * time.Hour

// Create writes new files into dir, for an API server that is reached at addrs
// and by names.
func Create(dir string, names []string, addrs []netip.Addr) (Files, error) {
	f := Paths(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Files{}, fmt.Errorf("creating certificates: %w", err)
	}
	if err := f.create(names, addrs); err != nil {
		return Files{}, fmt.Errorf("creating certificates: %w", err)
	}
	return f, nil
}

func (f Files) create(names []string, addrs []netip.Addr) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "switchyard end-to-end lab"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names,
	}
	for _, a := range addrs {
		server.IPAddresses = append(server.IPAddresses, net.IP(a.AsSlice()))
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// Kubernetes signs tokens with RS256 or ES256; 2048 bits is its usual key.
	const bits = 2048
	account, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return err
	}
	for _, out := range []struct {
		path, kind string
		der        []byte
	}{
		{f.CA, "CERTIFICATE", caDER},
		{f.Cert, "CERTIFICATE", serverDER},
		{f.Key, "PRIVATE KEY", keyDER},
		{f.ServiceAccount, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(account)},
	} {
		data := pem.EncodeToMemory(&pem.Block{Type: out.kind, Bytes: out.der})
		if err := os.WriteFile(out.path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Token is a new random bearer token.
func Token() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
