// Package control runs a real Kubernetes API server, with etcd, that feeds all proxies under test the same objects.
package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/rest"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	apiServer   = "kube-apiserver"
	apiPort     = 6443
	etcdURL     = "http://127.0.0.1:2379" // in the control plane's namespace
	etcdPeerURL = "http://127.0.0.1:2380"
	readyTime   = 90 * time.Second
	stopTime    = 5 * time.Second
	logLines    = 12 // of a program in trouble
)

// Services4 and Services6 are where ClusterIPs come from.
const (
	Services4 = "10.96.0.0/12"
	Services6 = "fd96::/108"
)

// Plane is a control plane in a network namespace of its own.
type Plane struct {
	core, discovery rest.Interface

	dir, bin, token string
	key             string // path of the key of service accounts
	log             *slog.Logger
	lab             *netlab.Lab
	programs        []program
	links           int
}

type program struct {
	*netlab.Program
	name string
}

// Start starts etcd and the kube-apiserver in bin, with their state in dir.
func Start(ctx context.Context, dir, bin string, log *slog.Logger) (*Plane, error) {
	lab, err := netlab.New(ctx, netlab.Config{Nodes: 1, Pods: -1, Log: log})
	if err != nil {
		return nil, err
	}
	p := &Plane{dir: dir, bin: bin, log: log, lab: lab}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the control plane: %w", err), p.Close())
	}
	return p, nil
}

func (p *Plane) start(ctx context.Context) error {
	key, err := p.identities()
	if err != nil {
		return err
	}
	if err := p.run("etcd", "etcd", "--name=bench", "--data-dir="+filepath.Join(p.dir, "etcd"),
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL, "--initial-cluster=bench="+etcdPeerURL,
		"--unsafe-no-fsync", fmt.Sprintf("--max-txn-ops=%d", maxTxnOps), "--quota-backend-bytes=4294967296", "--logger=zap", "--log-level=error"); err != nil {
		return err
	}
	p.key = key
	if err := p.serve(); err != nil {
		return err
	}
	if err := p.clients(); err != nil {
		return err
	}
	if err := p.ready(ctx); err != nil {
		return err
	}
	return p.createNamespace(ctx)
}

// serve starts the API server.
func (p *Plane) serve() error {
	return p.run(apiServer, filepath.Join(p.bin, apiServer),
		"--etcd-servers="+etcdURL, "--advertise-address="+p.host().Addr(4).String(), fmt.Sprintf("--secure-port=%d", apiPort),
		"--cert-dir="+filepath.Join(p.dir, "certs"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+p.key, "--service-account-signing-key-file="+p.key,
		"--token-auth-file="+filepath.Join(p.dir, "tokens.csv"), "--authorization-mode=AlwaysAllow",
		"--disable-admission-plugins=ServiceAccount", "--service-cluster-ip-range="+Services4+","+Services6,
		"--service-node-port-range=30000-32767", "--watch-cache=true", "--enable-priority-and-fairness=false")
}

// identities writes a token for everybody and the key that the API server insists on.
func (p *Plane) identities() (key string, err error) {
	p.token = randomText()
	if err := os.WriteFile(filepath.Join(p.dir, "tokens.csv"), []byte(p.token+`,bench,bench,"system:masters"`+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("writing the token: %w", err)
	}
	const bits = 2048
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return "", fmt.Errorf("making the service account key: %w", err)
	}
	key = filepath.Join(p.dir, "service-account.key")
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	if err := os.WriteFile(key, block, 0o600); err != nil {
		return "", fmt.Errorf("writing the service account key: %w", err)
	}
	return key, nil
}

func randomText() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (p *Plane) host() *netlab.Host { return p.lab.Nodes[0].Host }

// run starts a program in the control plane's namespace.
func (p *Plane) run(name, path string, args ...string) error {
	prog, err := p.host().StartProgram(exec.Command(path, args...), filepath.Join(p.dir, name+".log"))
	if err != nil {
		return err
	}
	p.programs = append(p.programs, program{prog, name})
	return nil
}

func (p *Plane) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, netlab.Patient(readyTime))
	defer cancel()
	var err error
	for {
		for _, prog := range p.programs {
			select {
			case <-prog.Exited():
				return fmt.Errorf("%s has ended; the end of its log:\n%s", prog.name, prog.LastLines(logLines))
			default:
			}
		}
		if err = p.core.Get().AbsPath("/readyz").Do(ctx).Error(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server is not ready after %s: %w", netlab.Patient(readyTime), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Connect gives a host of another lab a link to the API server, and writes a
// kubeconfig for who runs there.
func (p *Plane) Connect(h *netlab.Host) (kubeconfig string, err error) {
	p.links++
	near := linkName(p.links)
	if err := p.host().Connect(near, h, "api0"); err != nil {
		return "", err
	}
	addr := func(end byte) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 70, byte(p.links), end}), 24)
	}
	if err := errors.Join(p.host().AddAddress(near, addr(1)), h.AddAddress("api0", addr(2))); err != nil {
		return "", err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "https://%s:%d", insecure-skip-tls-verify: true}}]
users: [{name: bench, user: {token: %q}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
`, addr(1).Addr(), apiPort, p.token)
	kubeconfig = filepath.Join(p.dir, fmt.Sprintf("kubeconfig-%d", p.links))
	if err := os.WriteFile(kubeconfig, out.Bytes(), 0o600); err != nil {
		return "", fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return kubeconfig, nil
}

func linkName(n int) string { return fmt.Sprintf("link%d", n) }

// Close ends the control plane and removes its namespaces.
func (p *Plane) Close() error {
	patience := time.Duration(0) // the API server would wait for watches to end
	for _, prog := range slices.Backward(p.programs) {
		prog.Stop(patience)
		patience = netlab.Patient(stopTime)
	}
	return p.lab.Close()
}
