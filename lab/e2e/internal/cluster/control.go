package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/pki"
)

// controlGroup is the cgroup of the control plane.
func controlGroup() string { return filepath.Join(group, "control") }

const (
	etcdURL     = "http://127.0.0.1:2379" // in the control namespace
	etcdPeerURL = "http://127.0.0.1:2380"
	apiserver   = "kube-apiserver" // its name among the programs
)

// identities writes certificates, tokens and a kubeconfig per user.
func (l *Lab) identities() error {
	t := l.Topology
	certs, err := pki.Create(l.path("pki"),
		[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		[]netip.Addr{t.Control4, t.Control6, t.clusterIP()})
	if err != nil {
		return err
	}
	users := map[string]user{
		"admin":                   {Name: "admin", Groups: "system:masters"},
		"kube-controller-manager": {Name: "system:kube-controller-manager", Groups: "system:masters"},
		"kube-scheduler":          {Name: "system:kube-scheduler"},
		// The agent has just the rights that Kubernetes gives to kube-proxy.
		"agent": {Name: "system:kube-proxy"},
	}
	for _, n := range t.Nodes {
		users[n.Name] = user{Name: "system:node:" + n.Name, Groups: "system:nodes"}
	}
	var all []user
	for file, u := range users {
		u.token = pki.Token()
		all = append(all, u)
		data, err := render("kubeconfig", kubeconfigTemplate, map[string]string{
			"Server": l.server(), "CA": certs.CA, "User": u.Name, "Token": u.token,
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(l.kubeconfig(file), data, 0o600); err != nil {
			return fmt.Errorf("writing the kubeconfig of %s: %w", u.Name, err)
		}
	}
	return errors.Join(os.WriteFile(l.tokens(), tokenFile(all), 0o600), os.WriteFile(l.path("pki", "audit.yaml"), auditPolicy, 0o600))
}

func (l *Lab) kubeconfig(user string) string { return l.path("pki", user+".kubeconfig") }
func (l *Lab) tokens() string                { return l.path("pki", "tokens.csv") }
func (l *Lab) server() string                { return "https://" + l.apiAddr().String() }
func (l *Lab) apiAddr() netip.AddrPort       { return netip.AddrPortFrom(l.Topology.Control4, apiPort) }

func (l *Lab) startEtcd() error {
	return l.start(controlGroup(), "etcd", inControl("etcd",
		"--name=lab", "--data-dir="+l.path("etcd"),
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL,
		"--initial-cluster=lab="+etcdPeerURL,
		"--unsafe-no-fsync", "--logger=zap", "--log-level=warn"))
}

func (l *Lab) startControllers() error {
	key := pki.Paths(l.path("pki"))
	err := l.start(controlGroup(), "kube-controller-manager", inControl(l.bin("kube-controller-manager"),
		"--kubeconfig="+l.kubeconfig("kube-controller-manager"),
		"--service-account-private-key-file="+key.ServiceAccount, "--root-ca-file="+key.CA,
		"--service-cluster-ip-range="+pair(l.Topology.Services4, l.Topology.Services6),
		"--cluster-cidr="+pair(l.Topology.Pods4, l.Topology.Pods6),
		"--allocate-node-cidrs=false", // the Nodes were made with theirs
		"--leader-elect=false", "--bind-address=127.0.0.1",
		"--kube-api-qps=200", "--kube-api-burst=400"))
	if err != nil {
		return err
	}
	return l.start(controlGroup(), "kube-scheduler", inControl(l.bin("kube-scheduler"),
		"--kubeconfig="+l.kubeconfig("kube-scheduler"),
		"--leader-elect=false", "--bind-address=127.0.0.1",
		"--kube-api-qps=200", "--kube-api-burst=400"))
}

// StartAPIServer starts the API server and waits until it is ready.
func (l *Lab) StartAPIServer(ctx context.Context) error {
	key, t, began := pki.Paths(l.path("pki")), l.Topology, time.Now()
	err := l.start(controlGroup(), apiserver, inControl(l.bin("kube-apiserver"),
		"--etcd-servers="+etcdURL,
		"--advertise-address="+t.Control4.String(), "--secure-port="+strconv.Itoa(apiPort),
		"--tls-cert-file="+key.Cert, "--tls-private-key-file="+key.Key,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+key.ServiceAccount,
		"--service-account-signing-key-file="+key.ServiceAccount,
		"--audit-policy-file="+l.path("pki", "audit.yaml"), "--audit-log-path="+l.auditLog(), "--audit-log-mode=blocking",
		"--token-auth-file="+l.tokens(), "--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range="+pair(t.Services4, t.Services6),
		// end watches on SIGTERM rather than wait a minute for their clients
		"--shutdown-watch-termination-grace-period=1s",
		// exec and logs without DNS
		"--kubelet-preferred-address-types=InternalIP"))
	if err != nil {
		return err
	}
	if err := l.apiServerReady(ctx); err != nil {
		return err
	}
	return l.recordStart(start{From: began, Ready: time.Now()})
}

func (l *Lab) apiServerReady(ctx context.Context) error {
	client, err := l.apiClient()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	const limit = 60 * time.Second
	return Wait(ctx, "the API server", limit, func(ctx context.Context) error {
		if !l.programs.Alive(apiserver) {
			return errEnded
		}
		_, err := get(ctx, client, l.server()+"/readyz")
		return err
	})
}

// StopAPIServer ends the API server as an upgrade would.
func (l *Lab) StopAPIServer() error {
	const grace = 20 * time.Second
	return l.programs.Stop(apiserver, grace)
}

// apiClient speaks to the API server from beside it.
func (l *Lab) apiClient() (*http.Client, error) {
	ca, err := os.ReadFile(pki.Paths(l.path("pki")).CA)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's authority: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return httpClient(Control, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}), nil
}

// httpClient connects from within a namespace, to literal addresses only.
func httpClient(namespace string, secure *tls.Config) *http.Client {
	const limit = 5 * time.Second
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		TLSClientConfig: secure,
		DialContext: func(ctx context.Context, proto, addr string) (conn net.Conn, err error) {
			err = network.Do(network.Path(namespace), func() error {
				conn, err = (&net.Dialer{Timeout: limit}).DialContext(ctx, proto, addr)
				return err
			})
			return conn, err
		},
	}}
}

// get wants a 200 from url, and gives its page.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		const most = 1 << 10
		return nil, fmt.Errorf("%s: %s: %s", url, resp.Status, body[:min(len(body), most)])
	}
	return body, nil
}
