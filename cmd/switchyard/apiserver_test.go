package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/switchyard-io/switchyard/agent/inspect"
)

// apiServer is enough of one for an agent: it gives two Services that want the
// same address, and takes Events.
type apiServer struct {
	mu     sync.Mutex
	events []string
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	if r.Method == http.MethodPost {
		body, _ := io.ReadAll(r.Body)
		var e struct {
			Type, Reason, Note string
			Regarding          struct{ Kind, Name, UID string }
		}
		if err := json.Unmarshal(body, &e); err != nil {
			answer(http.StatusBadRequest, map[string]any{})
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, strings.Join([]string{r.URL.Path, e.Type, e.Regarding.Kind, e.Regarding.Name, e.Regarding.UID, e.Reason}, " "))
		answer(http.StatusCreated, map[string]any{"apiVersion": "events.k8s.io/v1", "kind": "Event"})
		return
	}
	switch q := r.URL.Query(); {
	case q.Get("sendInitialEvents") != "": // lists are not streamed
		answer(http.StatusUnprocessableEntity, map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422})
	case q.Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		answer(http.StatusOK, list(r.URL.Path))
	}
}

func list(path string) map[string]any {
	items, version, kind := []any{}, "v1", ""
	switch path[strings.LastIndex(path, "/")+1:] {
	case "services":
		kind = "ServiceList"
		for name, ip := range map[string]string{"a": "10.96.0.10", "b": "10.96.0.11"} {
			items = append(items, map[string]any{
				"metadata": map[string]any{"name": name, "namespace": "shop", "uid": "uid-of-" + name},
				"spec":     map[string]any{"clusterIP": ip, "clusterIPs": []string{ip}, "externalIPs": []string{"198.51.100.1"}, "ports": []any{map[string]any{"port": 80}}},
			})
		}
	case "endpointslices":
		version, kind = "discovery.k8s.io/v1", "EndpointSliceList"
	case "servicecidrs":
		version, kind = "networking.k8s.io/v1", "ServiceCIDRList"
	case "nodes":
		kind = "NodeList"
		items = append(items, map[string]any{"metadata": map[string]any{"name": "node-1"},
			"status": map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": "192.0.2.1"}}}})
	}
	return map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{"resourceVersion": "1"}, "items": items}
}

func (s *apiServer) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.events, "\n")
}

// server ends all requests when it closes. Else a watch that begins while it
// closes would go on.
type server struct {
	*httptest.Server
	end context.CancelFunc
}

func (s *server) Close() {
	s.end()
	s.CloseClientConnections()
	s.Server.Close()
}

func serve(t *testing.T, api *apiServer) *server {
	ctx, end := context.WithCancel(context.Background())
	h := &server{httptest.NewUnstartedServer(api), end}
	h.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	h.Start()
	t.Cleanup(h.Close)
	return h
}

// TestEvents: the agent says that it starts, and what is wrong with a Service,
// once.
func TestEvents(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	api := &apiServer{}
	h := serve(t, api)
	p := start(t, nil, "run", "--backend=iptables", "--master="+h.URL, "--kube-api-content-type=application/json",
		"--hostname-override=node-1", "--verify-interval=100ms")
	const starting = "/apis/events.k8s.io/v1/namespaces/default/events Normal Node node-1 node-1 Starting"
	const conflict = "/apis/events.k8s.io/v1/namespaces/shop/events Warning Service b uid-of-b AddressInUse"
	p.within(t, "both Events", func() bool { return strings.Contains(api.said(), starting) && strings.Contains(api.said(), conflict) })
	p.within(t, "three Syncs", func() bool {
		_, body := get("http://127.0.0.1:10249/metrics")
		_, after, _ := strings.Cut(body, `kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} `)
		n, _, _ := strings.Cut(after, "\n")
		return len(n) >= 2 || n >= "3"
	})
	if got := api.said(); got != starting+"\n"+conflict && got != conflict+"\n"+starting {
		t.Errorf("the Events are\n%s", got)
	}
	_, body := get("http://127.0.0.1:10249/metrics")
	for _, want := range []string{`rest_client_requests_total{code="200",host="127.0.0.1:`, `rest_client_requests_total{code="201",`, `rest_client_request_duration_seconds_bucket{`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

// TestTheEventOfAnAddressInUse: the last that is heard of an agent which must
// have its address.
func TestTheEventOfAnAddressInUse(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	api := &apiServer{}
	h := serve(t, api)
	p := start(t, nil, "run", "--backend=iptables", "--master="+h.URL, "--kube-api-content-type=application/json",
		"--hostname-override=node-1", "--bind-address-hard-fail", "--metrics-bind-address="+h.Listener.Addr().String())
	if code, _ := p.ended(t); code != 1 {
		t.Errorf("ended with %d", code)
	}
	if want := "/apis/events.k8s.io/v1/namespaces/default/events Warning Node node-1 node-1 FailedToStartMetricServer"; api.said() != want {
		t.Errorf("the Events are\n%s", api.said())
	}
}

// TestABlindAgentSaysSo: status and a metric report an API server that is gone.
// What was in force stays, and the agent stays ready.
func TestABlindAgentSaysSo(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	h := serve(t, &apiServer{})
	socket := filepath.Join(t.TempDir(), "agent.sock")
	p := start(t, func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--socket="+socket) }, "run", "--backend=iptables", "--master="+h.URL,
		"--kube-api-content-type=application/json", "--hostname-override=node-1")
	client := inspect.Client{Socket: socket}
	contacts := func(well func(inspect.Contact) bool) func() bool {
		return func() bool {
			s, _, err := client.Status(t.Context())
			if err != nil || !s.Health.Ready || len(s.Source) == 0 {
				return false
			}
			for _, c := range s.Source {
				if !well(c) {
					return false
				}
			}
			return true
		}
	}
	p.within(t, "contact", contacts(func(c inspect.Contact) bool { return c.Error == "" && !c.Last.IsZero() }))
	h.Close()
	p.within(t, "a word of it in status", contacts(func(c inspect.Contact) bool { return c.Error != "" && !c.Last.IsZero() }))
	_, body := get("http://127.0.0.1:10249/metrics")
	for _, resource := range []string{"services", "endpointslices"} {
		if !strings.Contains(body, `switchyard_source_last_contact_timestamp_seconds{resource="`+resource+`"}`) {
			t.Errorf("no metric of %s", resource)
		}
	}
}
