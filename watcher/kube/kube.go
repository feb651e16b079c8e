// Package kube is a Kubernetes API server as a source of objects.
//
// It lists and watches with client-go's reflectors, which are what its informers
// are made of, and hands their objects on as facts. An informer would keep every
// object a second time.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/go-logr/logr"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

const (
	// inClusterName is the name that every API server's certificate has.
	inClusterName = "kubernetes.default.svc"

	protobuf = "application/vnd.kubernetes.protobuf"
	// firstRetry and lastRetry are the pauses after a request failed: the first
	// one, doubled each time, and the longest. Up to the same again is added at
	// random. client-go's own limit is 30 s: long for a node whose API server is
	// back.
	firstRetry = 800 * time.Millisecond
	lastRetry  = 10 * time.Second
	// lastOptionalRetry is lastRetry for what the API server need not have.
	lastOptionalRetry = 5 * time.Minute
	// repeat is how often the log repeats that a request goes on failing.
	repeat = time.Minute
)

// Options say which API server, and who asks it.
type Options struct {
	Kubeconfig string // path; "" and no Master: as a pod in the cluster
	Master     string // URL that replaces the kubeconfig's server; ""
	// Servers are addresses, host and port, to connect to instead: the API servers
	// of the cluster. The name that is verified stays the kubeconfig's; for a pod in
	// the cluster it is inClusterName.
	Servers  []string
	NodeName string // this node
	Log      *slog.Logger
	// ContentType of what is sent and asked for; "": protobuf. JSON is always
	// understood. AcceptContentTypes, if set, is asked for instead.
	ContentType, AcceptContentTypes string
	// CompressWatches lets the API server compress what it streams, as client-go does.
	// From 1.37 on it compresses each event for each node by itself, which costs it
	// processor time and saves a third of the bytes.
	CompressWatches bool
	// QPS and Burst limit requests; 0: client-go's default.
	QPS   float32
	Burst int
	// Malformed, if set, is told of parts of a Service that make no sense and are
	// left out, each time that the Service comes.
	Malformed func(service facts.Name, uid string, err error)
}

// Source is an API server. It implements watcher.Source.
type Source struct {
	node string
	log  *slog.Logger
	core, discovery,
	networking, events rest.Interface
	decoder   runtime.Decoder // of the API's types
	malformed func(facts.Name, string, error)
	contacts  map[string]*luck // by resource
	compress  bool             // let watches be compressed
	listings  listings         // likewise
}

// Contact is how the requests for one resource fare.
type Contact struct {
	Resource string    // as in the API's paths
	Last     time.Time // when the API server last answered, or sent something in a watch; zero: never
	Err      error     // of the last request; nil: it succeeded, or there was none
	Failing  time.Time // since when requests fail; zero: they do not
	Optional bool      // the API server need not have the resource
}

// Contact returns when the API server was last heard of, sorted by resource. A
// watch in which nothing happens brings a sign of life about once a minute.
func (s *Source) Contact() []Contact {
	var out []Contact
	for _, resource := range slices.Sorted(maps.Keys(s.contacts)) {
		out = append(out, s.contacts[resource].contact(resource))
	}
	return out
}

// Config finds the API server and how to log in to it.
func Config(o Options) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if o.Kubeconfig == "" && o.Master == "" {
		if c, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("no kubeconfig is given, and as a pod of the cluster: %w", err)
		}
	} else if c, err = clientcmd.BuildConfigFromFlags(o.Master, o.Kubeconfig); err != nil {
		return nil, fmt.Errorf("reading kubeconfig %q: %w", o.Kubeconfig, err)
	}
	c.ContentType = o.ContentType
	if c.ContentType == "" {
		c.ContentType = protobuf
	}
	c.AcceptContentTypes = o.AcceptContentTypes
	if c.AcceptContentTypes == "" {
		c.AcceptContentTypes = c.ContentType + "," + runtime.ContentTypeJSON
	}
	c.QPS, c.Burst = o.QPS, o.Burst
	var several *servers
	if len(o.Servers) > 0 {
		several = newServers(o.Servers, o.NodeName, o.Log)
		c.Dial = several.dial
		c.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // which dial would not connect to
		if o.Kubeconfig == "" && o.Master == "" {
			c.ServerName = inClusterName
		}
	}
	c.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return &patience{next: next, servers: several, longest: answerTime}
	})
	return c, nil
}

// New readies the source and asks the API server for nothing yet. An error says
// that the configuration cannot work.
func New(o Options) (*Source, error) {
	c, err := Config(o)
	if err != nil {
		return nil, err
	}
	s := &Source{node: strings.ToLower(strings.TrimSpace(o.NodeName)), log: o.Log, malformed: o.Malformed, compress: o.CompressWatches, listings: listings{
		"services": {}, "endpointslices": {},
	}, contacts: map[string]*luck{
		"services":       {what: "Services", log: o.Log},
		"endpointslices": {what: "EndpointSlices", log: o.Log},
		"nodes":          {what: "the Node", log: o.Log},
		"servicecidrs":   {what: "ServiceCIDRs", log: o.Log, optional: true},
	}}
	if s.node == "" {
		return nil, errors.New("kube: no node name")
	}
	// Of the API just these groups are known: the whole of it costs megabytes.
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, eventsv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("registering the API's types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &listingTransport{next, s.listings} })
	// One for all groups: they share its connections.
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("making a client of the API: %w", err)
	}
	factory := serializer.NewCodecFactory(scheme)
	s.decoder = factory.UniversalDeserializer()
	codecs := factory.WithoutConversion()
	for _, g := range []struct {
		client  *rest.Interface
		version schema.GroupVersion
		path    string
	}{
		{&s.core, corev1.SchemeGroupVersion, "/api"},
		{&s.discovery, discoveryv1.SchemeGroupVersion, "/apis"},
		{&s.networking, networkingv1.SchemeGroupVersion, "/apis"},
		{&s.events, eventsv1.SchemeGroupVersion, "/apis"},
	} {
		gc := rest.CopyConfig(c)
		gc.GroupVersion, gc.APIPath, gc.NegotiatedSerializer = &g.version, g.path, codecs
		if *g.client, err = rest.RESTClientForConfigAndClient(gc, client); err != nil {
			return nil, fmt.Errorf("making a client of the API: %w", err)
		}
	}
	return s, nil
}

// Run follows the API server until the context ends. What fails is tried again,
// and the log says so.
func (s *Source) Run(ctx context.Context, apply func(facts.Change)) error {
	// What client-go has to say of retries is said below, once and in context.
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(quiet{s.log.Handler()}))
	var all sync.WaitGroup
	follow := func(r *cache.Reflector) { all.Go(func() { r.RunWithContext(ctx) }) }

	services := follower[corev1.Service, facts.Service]{
		luck: s.contacts["services"], listing: s.listings["services"], source: s, convert: facts.FromService,
		apply: func(d facts.Delta[facts.Service]) { apply(facts.Change{Services: d}) },
	}
	if s.malformed != nil {
		services.problem = func(o *corev1.Service, err error) {
			s.malformed(facts.Name{Namespace: o.Namespace, Name: o.Name}, string(o.UID), err)
		}
	}
	follow(services.reflector(s.core, "services", &corev1.Service{}, selection{
		labels: "!" + facts.ProxyNameLabel,
		fields: fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone).String(),
	}))
	endpointSlices := follower[discoveryv1.EndpointSlice, facts.Slice]{
		luck: s.contacts["endpointslices"], listing: s.listings["endpointslices"], source: s,
		convert: func(e *discoveryv1.EndpointSlice) (*facts.Slice, []error) { return facts.FromSlice(e, s.node) },
		apply:   func(d facts.Delta[facts.Slice]) { apply(facts.Change{Slices: d}) },
	}
	follow(endpointSlices.reflector(s.discovery, "endpointslices", &discoveryv1.EndpointSlice{}, selection{
		labels: "!" + facts.HeadlessLabel,
	}))
	node := follower[corev1.Node, facts.Node]{
		luck: s.contacts["nodes"], source: s, convert: facts.FromNode,
		apply: func(d facts.Delta[facts.Node]) { apply(facts.Change{Nodes: d}) },
	}
	follow(node.reflector(s.core, "nodes", &corev1.Node{}, selection{
		fields: fields.OneTermEqualSelector(metav1.ObjectNameField, s.node).String(),
	}))
	cidrs := follower[networkingv1.ServiceCIDR, facts.ServiceCIDR]{
		luck: s.contacts["servicecidrs"], source: s, convert: facts.FromServiceCIDR,
		apply: func(d facts.Delta[facts.ServiceCIDR]) { apply(facts.Change{ServiceCIDRs: d}) },
	}
	follow(cidrs.reflector(s.networking, "servicecidrs", &networkingv1.ServiceCIDR{}, selection{}))
	all.Wait()
	return ctx.Err()
}

// SendEvent writes an Event.
func (s *Source) SendEvent(ctx context.Context, e *eventsv1.Event) error {
	if err := s.events.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error(); err != nil {
		return fmt.Errorf("writing an Event: %w", err)
	}
	return nil
}

// selection is which objects the API server sends, as selectors are written; "":
// any (KUBE-PROXY §0).
type selection struct{ labels, fields string }

func retries(longest time.Duration) *wait.Backoff {
	steps := 1
	for d := firstRetry; d < longest; d *= 2 {
		steps++
	}
	return &wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 1, Steps: steps, Cap: longest}
}

// quiet makes every record one for debugging.
type quiet struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler. logr does not ask Enabled of errors.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if !q.Enabled(ctx, r.Level) {
		return nil
	}
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
