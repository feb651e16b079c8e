package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/kube"
)

const (
	servicesPath = "/api/v1/services"
	nodesPath    = "/api/v1/nodes"
	slicesPath   = "/apis/discovery.k8s.io/v1/endpointslices"
	cidrsPath    = "/apis/networking.k8s.io/v1/servicecidrs"
)

// apiServer speaks as much of the API as a list and a watch need. It does not
// select: the tests give it what the selectors would leave.
type apiServer struct {
	mu      sync.Mutex
	more    chan struct{} // closed and replaced at each event
	log     []event
	objects map[string]map[string]metav1.Object // by path, then name
	refuse  map[string]int                      // path to HTTP status
	queries map[string][]url.Values
	old     bool // knows no streamed lists
	// protobuf has it answer lists in protobuf.
	protobuf bool
}

type event struct {
	path, kind string
	object     metav1.Object
}

func newAPIServer() *apiServer {
	return &apiServer{more: make(chan struct{}), objects: map[string]map[string]metav1.Object{},
		refuse: map[string]int{}, queries: map[string][]url.Values{}}
}

func (s *apiServer) set(path string, o metav1.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := "ADDED"
	if s.objects[path] == nil {
		s.objects[path] = map[string]metav1.Object{}
	}
	if s.objects[path][o.GetName()] != nil {
		kind = "MODIFIED"
	}
	s.objects[path][o.GetName()] = o
	s.event(path, kind, o)
}

func (s *apiServer) remove(path, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[path][name]
	delete(s.objects[path], name)
	s.event(path, "DELETED", o)
}

func (s *apiServer) event(path, kind string, o metav1.Object) {
	s.log = append(s.log, event{path, kind, o})
	o.SetResourceVersion(strconv.Itoa(len(s.log)))
	close(s.more)
	s.more = make(chan struct{})
}

// expire ends the watches of a path: what they began at is too old.
func (s *apiServer) expire(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.event(path, expired, &corev1.Service{})
}

// expired is the kind of event that ends a watch.
const expired = "EXPIRED"

func (s *apiServer) answer(path string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse[path] = status
}

func (s *apiServer) asked(path string) []url.Values {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queries[path])
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.mu.Lock()
	s.queries[r.URL.Path] = append(s.queries[r.URL.Path], q)
	status, version := s.refuse[r.URL.Path], len(s.log)
	var items []metav1.Object
	for _, name := range slices.Sorted(maps.Keys(s.objects[r.URL.Path])) {
		items = append(items, s.objects[r.URL.Path][name])
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	streamed := q.Get("sendInitialEvents") == "true"
	switch {
	case status != 0:
		fail(w, status)
	case streamed && s.old:
		fail(w, http.StatusUnprocessableEntity)
	case q.Get("watch") == "" && s.protobuf:
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		sendProtobuf(w, r.URL.Path, version, items)
	case q.Get("watch") == "":
		list := map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(version)}, "items": items}
		list["apiVersion"], list["kind"] = types(r.URL.Path)
		list["kind"] = fmt.Sprint(list["kind"], "List")
		_ = json.NewEncoder(w).Encode(list)
	default:
		if streamed {
			for _, o := range items {
				send(w, "ADDED", o)
			}
			apiVersion, kind := types(r.URL.Path)
			send(w, "BOOKMARK", map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{
				"resourceVersion": strconv.Itoa(version), "annotations": map[string]any{metav1.InitialEventsAnnotationKey: "true"}}})
		} else {
			version, _ = strconv.Atoi(q.Get("resourceVersion"))
		}
		s.watch(w, r, version)
	}
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, from int) {
	for {
		s.mu.Lock()
		news, more := s.log[min(from, len(s.log)):], s.more
		s.mu.Unlock()
		from += len(news)
		for _, e := range news {
			if e.path != r.URL.Path {
				continue
			}
			if e.kind == expired {
				send(w, "ERROR", metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
					Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
				return
			}
			send(w, e.kind, e.object)
		}
		w.(http.Flusher).Flush()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

// sendProtobuf sends a list in protobuf.
func sendProtobuf(w http.ResponseWriter, path string, version int, items []metav1.Object) {
	list := map[string]runtime.Object{servicesPath: &corev1.ServiceList{}, nodesPath: &corev1.NodeList{},
		slicesPath: &discoveryv1.EndpointSliceList{}, cidrsPath: &networkingv1.ServiceCIDRList{}}[path]
	var objects []runtime.Object
	for _, o := range items {
		objects = append(objects, o.(runtime.Object))
	}
	_ = apimeta.SetList(list, objects)
	list.(metav1.ListInterface).SetResourceVersion(strconv.Itoa(version))
	apiVersion, kind := types(path)
	list.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(apiVersion, kind+"List"))
	none := runtime.NewScheme()
	_ = protobuf.NewSerializer(none, none).Encode(list, w)
}

func send(w http.ResponseWriter, kind string, object any) {
	_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
}

func fail(w http.ResponseWriter, status int) {
	w.WriteHeader(status)
	reason := map[int]metav1.StatusReason{http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusForbidden: metav1.StatusReasonForbidden,
		http.StatusUnprocessableEntity: metav1.StatusReasonInvalid}[status]
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status: metav1.StatusFailure, Code: int32(status), Reason: reason, Message: "refused by the test"})
}

func types(path string) (apiVersion, kind string) {
	return map[string]string{servicesPath: "v1", nodesPath: "v1", slicesPath: "discovery.k8s.io/v1", cidrsPath: "networking.k8s.io/v1"}[path],
		map[string]string{servicesPath: "Service", nodesPath: "Node", slicesPath: "EndpointSlice", cidrsPath: "ServiceCIDR"}[path]
}

func meta(path, name string) (metav1.TypeMeta, metav1.ObjectMeta) {
	apiVersion, kind := types(path)
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}, metav1.ObjectMeta{Name: name, Namespace: "shop"}
}

func (s *apiServer) service(name, ip string) {
	o := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}}}}
	o.TypeMeta, o.ObjectMeta = meta(servicesPath, name)
	s.set(servicesPath, o)
}

func (s *apiServer) slice(service string, addresses ...string) {
	o := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(8080))}}}
	o.TypeMeta, o.ObjectMeta = meta(slicesPath, service+"-1")
	o.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	for _, a := range addresses {
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	s.set(slicesPath, o)
}

func (s *apiServer) node(name, zone string) {
	o := &corev1.Node{}
	o.TypeMeta, o.ObjectMeta = meta(nodesPath, name)
	o.Namespace = ""
	o.Labels = map[string]string{corev1.LabelTopologyZone: zone}
	o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	s.set(nodesPath, o)
}

func (s *apiServer) cidr(c string) {
	o := &networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{c}}}
	o.TypeMeta, o.ObjectMeta = meta(cidrsPath, "kubernetes")
	o.Namespace = ""
	s.set(cidrsPath, o)
}

// shop fills an API server with one of everything.
func (s *apiServer) shop() {
	s.service("web", "10.96.0.10")
	s.slice("web", "10.244.1.2", "10.244.2.2")
	s.node("node-a", "z1")
	s.cidr("10.96.0.0/16")
}

// agent is a Watcher on an API server.
type agent struct {
	*watcher.Watcher
	source *kube.Source
	log    *logBuffer

	mu        sync.Mutex
	snapshots []*dataplane.Snapshot
}

func (a *agent) last() *dataplane.Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.Next(); s != nil {
		a.snapshots = append(a.snapshots, s)
	}
	if len(a.snapshots) == 0 {
		return nil
	}
	return a.snapshots[len(a.snapshots)-1]
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func start(t *testing.T, url string) *agent {
	t.Helper()
	a := &agent{log: &logBuffer{}}
	log := slog.New(slog.NewTextHandler(a.log, nil))
	source, err := kube.New(kube.Options{Master: url, NodeName: "Node-A", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	a.source = source
	a.Watcher, err = watcher.New(watcher.Options{
		Log: log, NodeName: "Node-A", Families: []dataplane.Family{dataplane.IPv4}, NodeWait: 2 * time.Second,
		Addresses: func(ctx context.Context, report func([]netip.Prefix)) error { report(nil); <-ctx.Done(); return nil },
	}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, source) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a
}

// server ends all requests when it closes. Else Close would wait for a watch
// that begins while it closes.
type server struct {
	*httptest.Server
	end context.CancelFunc
}

func (s *server) Close() {
	s.end()
	s.CloseClientConnections()
	s.Server.Close()
}

func serve(t *testing.T, s http.Handler) *server {
	t.Helper()
	return serveOn(t, nil, s)
}

// serveOn serves at a listener; nil: at one of its own.
func serveOn(t *testing.T, l net.Listener, s http.Handler) *server {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	h := &server{httptest.NewUnstartedServer(s), end}
	h.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	if l != nil {
		_ = h.Listener.Close()
		h.Listener = l
	}
	h.Start()
	t.Cleanup(h.Close)
	return h
}

// within waits until something is true.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// endpoints is how many endpoints the ClusterIP of web has; -1: no such Service.
func (a *agent) endpoints() int {
	s := a.last()
	if s == nil {
		return -1
	}
	p := s.Ports.Get(dataplane.PortID{Namespace: "shop", Service: "web", Protocol: dataplane.TCP, Family: dataplane.IPv4})
	if p == nil {
		return -1
	}
	return len(p.Frontends[0].Pool.Endpoints)
}

func TestWritesEvents(t *testing.T) {
	var path, kind string
	var body []byte
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, kind = r.Method+" "+r.URL.Path, r.Header.Get("Content-Type")
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"apiVersion":"events.k8s.io/v1","kind":"Event"}`)
	}))
	defer h.Close()
	source, err := kube.New(kube.Options{Master: h.URL, NodeName: "node-a", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e := &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.1"}, Reason: "AddressInUse"}
	if err := source.SendEvent(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if path != "POST /apis/events.k8s.io/v1/namespaces/shop/events" || kind != "application/vnd.kubernetes.protobuf" || !bytes.Contains(body, []byte("AddressInUse")) {
		t.Errorf("asked %s, %s: %q", path, kind, body)
	}
}

func TestTellsOfMalformedServices(t *testing.T) {
	api := newAPIServer()
	api.shop()
	bad := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9", "10.96.0"}, Ports: []corev1.ServicePort{{Port: 80}}}}
	bad.TypeMeta, bad.ObjectMeta = meta(servicesPath, "bad")
	bad.UID = "0123"
	api.set(servicesPath, bad)
	told := make(chan string, 9)
	source, err := kube.New(kube.Options{
		Master: serve(t, api).URL, NodeName: "node-a", Log: slog.New(slog.DiscardHandler),
		Malformed: func(s facts.Name, uid string, err error) { told <- fmt.Sprintf("%s %s %v", s, uid, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = source.Run(ctx, func(facts.Change) {}) }()
	select {
	case got := <-told:
		if !strings.HasPrefix(got, "shop/bad 0123 ") || !strings.Contains(got, "10.96.0") {
			t.Errorf("told %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("never told")
	}
}

func TestSelectors(t *testing.T) { // KUBE-PROXY §0
	api := newAPIServer()
	api.shop()
	a := start(t, serve(t, api).URL)
	within(t, "a Snapshot", func() bool { return a.last() != nil })
	for _, tc := range []struct{ path, labels, fields string }{
		{servicesPath, "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"},
		{slicesPath, "!service.kubernetes.io/headless", ""},
		{nodesPath, "", "metadata.name=node-a"},
		{cidrsPath, "", ""},
	} {
		within(t, "a request for "+tc.path, func() bool { return len(api.asked(tc.path)) > 0 })
		for _, q := range api.asked(tc.path) {
			if q.Get("labelSelector") != tc.labels || q.Get("fieldSelector") != tc.fields {
				t.Errorf("%s: asked with labels %q and fields %q, wanted %q and %q",
					tc.path, q.Get("labelSelector"), q.Get("fieldSelector"), tc.labels, tc.fields)
			}
		}
	}
}

func TestFollowsAnAPIServer(t *testing.T) {
	for _, c := range []struct{ old, protobuf bool }{{false, false}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("without streamed lists=%v, protobuf=%v", c.old, c.protobuf), func(t *testing.T) {
			api := newAPIServer()
			api.old, api.protobuf = c.old, c.protobuf
			api.shop()
			a := start(t, serve(t, api).URL)
			within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
			if first := a.snapshots[0]; first.Revision != 1 || first.Ports.Len() != 1 || first.Node.Zone != "z1" {
				t.Errorf("the first Snapshot is not whole: %+v", first)
			}
			within(t, "the ranges of ClusterIPs", func() bool { return len(a.last().ServiceCIDRs) == 1 })
			api.slice("web", "10.244.1.2")
			within(t, "one endpoint", func() bool { return a.endpoints() == 1 })
			api.service("db", "10.96.0.11")
			within(t, "another Service", func() bool { return a.last().Ports.Len() == 2 })
			api.remove(servicesPath, "web") // also how a label that ends the selection looks
			within(t, "one Service less", func() bool { return a.endpoints() == -1 && a.last().Ports.Len() == 1 })
			api.node("node-a", "z2")
			within(t, "another zone", func() bool { return a.last().Node.Zone == "z2" })
			if n := a.log.count("level=WARN"); n > 0 {
				t.Errorf("%d warnings", n)
			}
		})
	}
}

// TestAWatchThatExpires: the API server forgot what a watch goes on from. What
// happened meanwhile is learned, and nobody is alarmed.
func TestAWatchThatExpires(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("without streamed lists=%v", old), func(t *testing.T) {
			api := newAPIServer()
			api.old = old
			api.shop()
			a := start(t, serve(t, api).URL)
			within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
			api.expire(slicesPath)
			api.slice("web", "10.244.1.2") // after the watch ended
			within(t, "one endpoint", func() bool { return a.endpoints() == 1 })
			api.expire(servicesPath)
			api.remove(servicesPath, "web")
			within(t, "no Service", func() bool { return a.last().Ports.Len() == 0 })
			if n := a.log.count("level=WARN"); n > 0 {
				t.Errorf("%d warnings", n)
			}
		})
	}
}

// TestContact: when each resource was last heard of, and what is wrong with it.
func TestContact(t *testing.T) {
	api := newAPIServer()
	api.shop()
	api.answer(slicesPath, http.StatusServiceUnavailable)
	h := serve(t, api)
	a := start(t, h.URL)
	by := func(resource string) kube.Contact {
		for _, c := range a.source.Contact() {
			if c.Resource == resource {
				return c
			}
		}
		t.Fatalf("no %s", resource)
		return kube.Contact{}
	}
	within(t, "contact for Services", func() bool { return !by("services").Last.IsZero() })
	within(t, "a refusal", func() bool { return by("endpointslices").Err != nil })
	if c := by("endpointslices"); !c.Last.IsZero() || c.Failing.IsZero() {
		t.Errorf("never answered, and %+v", c)
	}
	api.answer(slicesPath, 0)
	within(t, "an answer", func() bool { c := by("endpointslices"); return c.Err == nil && c.Failing.IsZero() && !c.Last.IsZero() })
	within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
	before := by("endpointslices").Last
	api.slice("db", "10.244.1.2")
	within(t, "a later time, for an event in a watch", func() bool { return by("endpointslices").Last.After(before) })
	h.Close()
	for _, resource := range []string{"services", "endpointslices", "nodes", "servicecidrs"} {
		within(t, "an error for "+resource, func() bool { c := by(resource); return c.Err != nil && !c.Failing.IsZero() && !c.Last.IsZero() })
	}
}

// TestListings: the first list is measured, streamed or not, and no watch after it.
func TestListings(t *testing.T) {
	const slow = 50 * time.Millisecond
	for name, old := range map[string]bool{"streamed": false, "listed": true} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer()
			api.old = old
			api.shop()
			h := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(slow)
				api.ServeHTTP(w, r)
			}))
			a := start(t, h.URL)
			within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
			first := a.source.Listings()
			if len(first) != 2 {
				t.Fatalf("%+v; want Services and EndpointSlices", first)
			}
			for _, l := range first {
				if l.Ended.IsZero() || l.Waited < slow {
					t.Errorf("%+v; want %v of waiting at least", l, slow)
				}
			}
			api.slice("web", "10.244.1.2")
			within(t, "one endpoint", func() bool { return a.endpoints() == 1 })
			for i, l := range a.source.Listings() {
				if !slices.Contains(first, l) {
					t.Errorf("a change made of a listing %+v, number %d", l, i)
				}
			}
		})
	}
}

func TestNothingIsPublishedBeforeBothAreKnown(t *testing.T) { // KUBE-PROXY §0
	for _, path := range []string{servicesPath, slicesPath} {
		t.Run(path, func(t *testing.T) {
			api := newAPIServer()
			api.shop()
			api.answer(path, http.StatusServiceUnavailable)
			a := start(t, serve(t, api).URL)
			within(t, "a refusal in the log", func() bool { return a.log.count("refused by the test") > 0 })
			time.Sleep(100 * time.Millisecond)
			if s := a.last(); s != nil {
				t.Fatalf("published too early: %+v", s)
			}
			api.answer(path, 0)
			within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
		})
	}
}

func TestGoesOnWithoutTheNode(t *testing.T) { // KUBE-PROXY §0
	api := newAPIServer()
	api.shop()
	api.remove(nodesPath, "node-a")
	a := start(t, serve(t, api).URL)
	within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
	if a.Status().NodeEligible {
		t.Error("a Node that is not there is eligible")
	}
	api.node("node-a", "z1")
	within(t, "the zone", func() bool { return a.last().Node.Zone == "z1" })
	within(t, "an eligible Node", func() bool { return a.Status().NodeEligible })
}

func TestGoesOnWithoutServiceCIDRs(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			api := newAPIServer()
			api.shop()
			api.answer(cidrsPath, status)
			a := start(t, serve(t, api).URL)
			within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
			if n := a.log.count("level=WARN"); n > 0 {
				t.Errorf("%d warnings", n)
			}
		})
	}
}

func TestAnUnreachableAPIServerIsTriedAgain(t *testing.T) {
	api := newAPIServer()
	api.shop()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	a := start(t, "http://"+free.Addr().String())
	within(t, "the failure in the log", func() bool { return a.log.count("connection refused") > 0 })
	time.Sleep(2 * time.Second)
	if n := a.log.count("level=WARN"); n > 4 { // one for each kind of object, not one for each try
		t.Errorf("%d warnings", n)
	}
	if a.last() != nil {
		t.Error("published without an API server")
	}
	listener, err := listen(free.Addr())
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	h := serveOn(t, listener, api)
	within(t, "two endpoints", func() bool { return a.endpoints() == 2 })
	within(t, "the end of the failure in the log", func() bool { return a.log.count("answers again\" kind=Services") == 1 })

	// It goes away: nothing is taken back. It comes again: what changed meanwhile is there.
	h.Close()
	within(t, "the failure in the log again", func() bool { return a.log.count("trying again\" kind=Services") > 1 })
	if n := a.endpoints(); n != 2 {
		t.Errorf("%d endpoints after the API server went away", n)
	}
	api.slice("web", "10.244.1.2")
	if listener, err = listen(free.Addr()); err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	serveOn(t, listener, api)
	within(t, "one endpoint", func() bool { return a.endpoints() == 1 })
}

func listen(a net.Addr) (net.Listener, error) { return net.Listen("tcp", a.String()) }
