package healthcheck

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestMain runs the tests in a network namespace of their own, where they may
// listen and add addresses as they like.
func TestMain(m *testing.M) { kerneltest.Main(m, setUpLoopback) }

func setUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	// A load balancer's address, as a cloud's agent makes it local.
	vip := &net.IPNet{IP: net.IPv4(198, 51, 100, 7).To4(), Mask: net.CIDRMask(32, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: vip, Table: 255, Type: syscall.RTN_LOCAL, Scope: netlink.SCOPE_HOST}); err != nil {
		return err
	}
	for _, cidr := range []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"} {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(lo)
}

// port makes a ServicePort with a health check; hc nil: none.
func port(service, name string, f dataplane.Family, hc *dataplane.HealthCheck) *dataplane.ServicePort {
	return &dataplane.ServicePort{
		ID:          dataplane.PortID{Namespace: "shop", Service: service, Port: name, Protocol: dataplane.TCP, Family: f},
		HealthCheck: hc,
	}
}

func check30(endpoints int) *dataplane.HealthCheck {
	return &dataplane.HealthCheck{Port: 30100, LocalEndpoints: endpoints}
}

func node(nodePorts ...string) *dataplane.Node {
	n := &dataplane.Node{Name: "node"}
	for _, p := range nodePorts {
		n.NodePorts = append(n.NodePorts, netip.MustParsePrefix(p))
	}
	return n
}

// everywhere has NodePorts answer at every address of some families.
func everywhere(n *dataplane.Node, families ...dataplane.Family) *dataplane.Node {
	n.Everywhere = families
	return n
}

func snapshot(n *dataplane.Node, ports ...*dataplane.ServicePort) *dataplane.Snapshot {
	return &dataplane.Snapshot{Revision: 1, Node: n, Ports: dataplane.MakePorts(ports...)}
}

func newServer(t *testing.T, healthy bool) *Server {
	s := New(slog.New(slog.DiscardHandler), func() bool { return healthy })
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// ask sends a request on a connection of its own; code 0: nobody listens.
func ask(t *testing.T, method, addr, path string) (code int, body string, header http.Header) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", nil
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer of %s: %v", addr, err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// What a load balancer is told (KUBE-PROXY §1.16).
func TestAnswer(t *testing.T) {
	kerneltest.NeedMain(t)
	cases := []struct {
		name         string
		method, path string
		endpoints    int
		healthy      bool
		code         int
	}{
		{"endpoints here", "GET", "/", 2, true, 200},
		{"none here", "GET", "/", 0, true, 503},
		{"the agent does not work", "GET", "/", 2, false, 503},
		{"neither", "GET", "/", 0, false, 503},
		{"any path", "GET", "/healthz/of?some=sort", 1, true, 200},
		{"any method", "POST", "/", 1, true, 200},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, tc.healthy)
			s.Synced(snapshot(node("192.0.2.1/32"), port("web", "http", dataplane.IPv4, check30(tc.endpoints))))
			code, body, header := ask(t, tc.method, "192.0.2.1:30100", tc.path)
			want := fmt.Sprintf(`{
	"service": {
		"namespace": "shop",
		"name": "web"
	},
	"localEndpoints": %d,
	"serviceProxyHealthy": %v
}`, tc.endpoints, tc.healthy)
			if code != tc.code || body != want {
				t.Errorf("answer %d:\n%s\nwant %d:\n%s", code, body, tc.code, want)
			}
			for name, want := range map[string]string{
				"Content-Type": "application/json", "X-Content-Type-Options": "nosniff",
				"X-Load-Balancing-Endpoint-Weight": fmt.Sprint(tc.endpoints),
			} {
				if got := header.Get(name); got != want {
					t.Errorf("header %s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

// Where it answers, from Snapshot to Snapshot of one Server.
func TestWhereItAnswers(t *testing.T) {
	kerneltest.NeedMain(t)
	const v4, v6 = dataplane.IPv4, dataplane.IPv6
	hc2 := check30(2)
	all := []string{"192.0.2.1:30100", "192.0.2.2:30100", "127.0.0.1:30100", "[2001:db8::1]:30100", "[::1]:30100", "192.0.2.1:30200", "198.51.100.7:30100"}
	steps := []struct {
		name string
		want *dataplane.Snapshot
		up   map[string]string // address to the localEndpoints that it tells
	}{
		{
			"no health check", snapshot(node("192.0.2.1/32"), port("web", "http", v4, nil)), nil,
		}, {
			"a Service with one", snapshot(node("192.0.2.1/32"), port("web", "http", v4, hc2), port("web", "https", v4, hc2)),
			map[string]string{"192.0.2.1:30100": "2"},
		}, {
			"the number of endpoints changes", snapshot(node("192.0.2.1/32"), port("web", "http", v4, check30(3)), port("web", "https", v4, check30(3))),
			map[string]string{"192.0.2.1:30100": "3"},
		}, {
			"one of its ports goes", snapshot(node("192.0.2.1/32"), port("web", "https", v4, check30(3))),
			map[string]string{"192.0.2.1:30100": "3"},
		}, {
			"its last port gets another name", snapshot(node("192.0.2.1/32"), port("web", "a", v4, check30(3))),
			map[string]string{"192.0.2.1:30100": "3"},
		}, {
			"node addresses come", snapshot(node("127.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"), port("web", "a", v4, hc2)),
			map[string]string{"192.0.2.1:30100": "2", "192.0.2.2:30100": "2", "127.0.0.1:30100": "2"},
		}, {
			"node addresses go", snapshot(node("192.0.2.2/32"), port("web", "a", v4, hc2)),
			map[string]string{"192.0.2.2:30100": "2"},
		}, {
			"each family for itself", snapshot(node("192.0.2.1/32", "2001:db8::1/128", "fe80::1/128"), port("web", "a", v4, hc2), port("web", "a", v6, check30(1))),
			map[string]string{"192.0.2.1:30100": "2", "[2001:db8::1]:30100": "1"},
		}, {
			"just IPv6", snapshot(node("192.0.2.1/32", "2001:db8::1/128"), port("web", "a", v6, check30(1))),
			map[string]string{"[2001:db8::1]:30100": "1"},
		}, {
			"another port", snapshot(node("192.0.2.1/32"), port("web", "a", v4, &dataplane.HealthCheck{Port: 30200, LocalEndpoints: 4})),
			map[string]string{"192.0.2.1:30200": "4"},
		}, {
			"another Service takes the port", snapshot(node("192.0.2.1/32"), port("api", "a", v4, &dataplane.HealthCheck{Port: 30200, LocalEndpoints: 5})),
			map[string]string{"192.0.2.1:30200": "5"},
		}, {
			"everywhere: also at addresses that nobody knows of", snapshot(everywhere(node("192.0.2.2/32"), v4, v6), port("web", "a", v4, hc2), port("web", "a", v6, check30(1))),
			map[string]string{"192.0.2.1:30100": "2", "192.0.2.2:30100": "2", "127.0.0.1:30100": "2", "[2001:db8::1]:30100": "1", "[::1]:30100": "1", "198.51.100.7:30100": "2"},
		}, {
			"everywhere in one family", snapshot(everywhere(node("192.0.2.2/32"), v6), port("web", "a", v4, hc2), port("web", "a", v6, check30(1))),
			map[string]string{"192.0.2.2:30100": "2", "[2001:db8::1]:30100": "1", "[::1]:30100": "1"},
		}, {
			"everywhere, and another Service takes the port", snapshot(everywhere(node("192.0.2.1/32"), v4), port("api", "a", v4, hc2)),
			map[string]string{"192.0.2.1:30100": "2", "192.0.2.2:30100": "2", "127.0.0.1:30100": "2", "198.51.100.7:30100": "2"},
		}, {
			"the Service is deleted", snapshot(node("192.0.2.1/32")), nil,
		},
	}
	s := newServer(t, true)
	s.OnFailure = func(f Failure) { t.Errorf("failure: %+v", f) }
	for _, step := range steps {
		s.Synced(step.want)
		for _, addr := range all {
			_, _, header := ask(t, "GET", addr, "/")
			if got := header.Get("X-Load-Balancing-Endpoint-Weight"); got != step.up[addr] {
				t.Errorf("%s: %s tells %q, want %q", step.name, addr, got, step.up[addr])
			}
		}
	}
}

// A port that another process has is reported once, holds up no other Service,
// and is taken as soon as it is free.
func TestPortInUse(t *testing.T) {
	kerneltest.NeedMain(t)
	var lc net.ListenConfig
	other, err := lc.Listen(context.Background(), "tcp4", "192.0.2.1:30100")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()

	s := newServer(t, true)
	var failures []Failure
	s.OnFailure = func(f Failure) { failures = append(failures, f) }
	ports := []*dataplane.ServicePort{
		port("api", "a", dataplane.IPv4, &dataplane.HealthCheck{Port: 30200, LocalEndpoints: 1}),
		port("web", "a", dataplane.IPv4, check30(1)),
	}
	for range 2 {
		s.Synced(snapshot(node("192.0.2.1/32"), ports...))
	}
	if len(failures) != 1 || failures[0].Service != "web" || failures[0].Namespace != "shop" ||
		failures[0].Addr != netip.MustParseAddrPort("192.0.2.1:30100") || failures[0].Err == nil {
		t.Errorf("failures %+v, want one that names shop/web and 192.0.2.1:30100", failures)
	}
	if code, _, _ := ask(t, "GET", "192.0.2.1:30200", "/"); code != 200 {
		t.Errorf("the other Service answers %d, want 200", code)
	}
	_ = other.Close()
	s.listenAgain() // what Run does every few seconds
	if code, _, _ := ask(t, "GET", "192.0.2.1:30100", "/"); code != 200 {
		t.Errorf("the freed port answers %d, want 200", code)
	}
}

// An address that the node does not have yet is listened on all the same.
func TestAddressNotYetThere(t *testing.T) {
	kerneltest.NeedMain(t)
	s := newServer(t, true)
	s.OnFailure = func(f Failure) { t.Errorf("failure: %+v", f) }
	s.Synced(snapshot(node("192.0.2.77/32"), port("web", "a", dataplane.IPv4, check30(1))))
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("192.0.2.77/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.AddrDel(lo, addr) })
	if code, _, _ := ask(t, "GET", "192.0.2.77:30100", "/"); code != 200 {
		t.Errorf("answer %d, want 200", code)
	}
}

func TestEndOfRunCloses(t *testing.T) {
	kerneltest.NeedMain(t)
	s := newServer(t, true)
	want := snapshot(node("192.0.2.1/32"), port("web", "a", dataplane.IPv4, check30(1)))
	s.Synced(want)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ctx)
	s.Synced(want) // too late
	if code, _, _ := ask(t, "GET", "192.0.2.1:30100", "/"); code != 0 {
		t.Errorf("answers %d after the end of Run", code)
	}
}
