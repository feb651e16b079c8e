// Package events tells the cluster of this node and of what is wrong with a Service: once, not on every Sync.
//
// The Events are those of kube-proxy (KUBE-PROXY §2.5), and a Warning for each
// thing that is wrong with a Service. client-go has a recorder for them; it
// brings all types of the API along, 15 MB of them.
package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/switchyard-io/switchyard/dataplane"
)

const (
	// controller is kube-proxy's name, so that who looks for its Events finds these.
	controller = "kube-proxy"
	// again is how long no second Event is sent about a Service for one reason: as
	// long as API servers keep the first.
	again = time.Hour
	// mostOfNamespace bounds the Events about the Services of a namespace in that
	// time, so that a tenant who makes thousands of wrong Services costs the API
	// server little, and mostInAll those about any Services.
	mostOfNamespace = 10
	mostInAll       = 60
	mostWaiting     = 256
	// longestNote is the API's limit, in bytes.
	longestNote = 1024
	// tries is how often an Event is sent, and retry the pause before each but the first.
	tries = 3
	retry = 2 * time.Second
)

// Reasons of a Service's Warnings.
const (
	// Conflict: another Service has an address and port that this one wants.
	Conflict = "AddressInUse"
	// Malformed: a field makes no sense and is left out.
	Malformed = "MalformedService"
	// Refused: the backend cannot program the Service.
	Refused = "FailedToProgram"
	// HealthCheck: a healthCheckNodePort cannot be listened on; kube-proxy's.
	HealthCheck = "FailedToStartServiceHealthcheck"
)

// Service is who an Event is about. The UID, where it is known, lets kubectl
// describe find the Event.
type Service struct{ Namespace, Name, UID string }

// Recorder sends Events. Its methods never block. Without an API server (Send
// nil) it does nothing: each thing that it would tell is in the log, too.
type Recorder struct {
	Log  *slog.Logger
	Node string
	Send func(context.Context, *eventsv1.Event) error

	mu    sync.Mutex
	told  map[fact]time.Time
	queue chan *eventsv1.Event
}

// fact is what is told once, in whichever words. A Service with another UID is
// another one.
type fact struct {
	service Service
	reason  string
}

// New makes a Recorder; Run starts it.
func New(log *slog.Logger, node string, send func(context.Context, *eventsv1.Event) error) *Recorder {
	return &Recorder{Log: log, Node: node, Send: send, told: map[fact]time.Time{}, queue: make(chan *eventsv1.Event, mostWaiting)}
}

// Run sends what is told until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.send(ctx, e)
		}
	}
}

// Starting says that the agent starts.
func (r *Recorder) Starting() {
	r.put(r.ofNode(corev1.EventTypeNormal, "Starting", ""))
}

// CannotServe says that the agent ends as an address cannot be had, and returns
// when that is sent or too late.
func (r *Recorder) CannotServe(ctx context.Context, server string, err error) {
	if r.Send == nil {
		return
	}
	reason := map[string]string{"health": "FailedToStartProxierHealthcheck", "metrics": "FailedToStartMetricServer"}[server]
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := r.Send(ctx, r.ofNode(corev1.EventTypeWarning, reason, err.Error())); err != nil {
		r.Log.Debug("an event could not be sent", "reason", reason, "error", err)
	}
}

// Wrong says what is wrong with a Service, if that was not said lately and too
// much was not either. The log and the status page have what is left out here.
func (r *Recorder) Wrong(s Service, reason, note string) {
	if r.Send == nil || !r.first(fact{s, reason}) {
		return
	}
	sent := r.put(r.event(corev1.ObjectReference{
		APIVersion: "v1", Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: types.UID(s.UID),
	}, corev1.EventTypeWarning, reason, "ProgramService", note))
	if !sent {
		r.forget(fact{s, reason})
	}
}

// Synced writes which Services the backend refused in a Sync.
func (r *Recorder) Synced(report dataplane.SyncReport, uid func(namespace, name string) string) {
	if r.Send == nil {
		return
	}
	for _, f := range report.Tried {
		s := Service{f.ID.Namespace, f.ID.Service, uid(f.ID.Namespace, f.ID.Service)}
		r.Wrong(s, Refused, f.Error())
	}
}

// ofNode reports whether a fact is about this node's own work. Those have room of
// their own, which what tenants write cannot fill.
func (f fact) ofNode() bool { return f.reason == Refused || f.reason == HealthCheck }

// first reports whether something was not told lately and may be told, and notes
// that it is.
func (r *Recorder) first(f fact) bool {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.told[f]; ok && now.Sub(at) < again {
		return false
	}
	inAll, ofNamespace := 0, 0
	for other, at := range r.told { // mostInAll of each kind
		if now.Sub(at) >= again {
			delete(r.told, other)
		} else if other.ofNode() == f.ofNode() {
			inAll++
			if other.service.Namespace == f.service.Namespace {
				ofNamespace++
			}
		}
	}
	if inAll >= mostInAll || ofNamespace >= mostOfNamespace {
		return false
	}
	r.told[f] = now
	return true
}

func (r *Recorder) forget(f fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, f)
}

// put queues an Event and reports whether there was room.
func (r *Recorder) put(e *eventsv1.Event) bool {
	if r.Send == nil {
		return false
	}
	select {
	case r.queue <- e:
		return true
	default:
		r.Log.Debug("too many events wait; one is lost", "reason", e.Reason, "object", e.Regarding.Name)
		return false
	}
}

func (r *Recorder) send(ctx context.Context, e *eventsv1.Event) {
	for try := 1; ; try++ {
		err := r.Send(ctx, e)
		var status apierrors.APIStatus
		final := errors.As(err, &status) && status.Status().Code >= 400 && status.Status().Code < 500 && !apierrors.IsTooManyRequests(err)
		if err == nil || ctx.Err() != nil {
			return
		}
		if final || try == tries {
			r.Log.Info("an event could not be written", "reason", e.Reason, "object", e.Regarding.Name, "error", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

func (r *Recorder) ofNode(kind, reason, note string) *eventsv1.Event {
	// As kube-proxy's and kubelet's: kubectl describe looks for a node's name in
	// place of its UID.
	ref := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.Node, UID: types.UID(r.Node)}
	return r.event(ref, kind, reason, "StartKubeProxy", note)
}

func (r *Recorder) event(about corev1.ObjectReference, kind, reason, action, note string) *eventsv1.Event {
	now := time.Now()
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	if len(note) > longestNote {
		note = strings.ToValidUTF8(note[:longestNote-len("…")], "") + "…" // which the API wants it to be
	}
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%.200s.%x", about.Name, now.UnixNano())},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: controller,
		ReportingInstance:   fmt.Sprintf("%.*s", 128, controller+"-"+r.Node),
		Action:              action,
		Reason:              reason,
		Regarding:           about,
		Note:                note,
		Type:                kind,
	}
}
