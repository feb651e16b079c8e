package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/loglimit"
)

// follower hands one kind of objects on as facts, F of each O. It is the store
// of a reflector and stores nothing: what the reflector tells is applied.
type follower[O, F any] struct {
	source  *Source
	luck    *luck
	listing *listing // nil: it is not measured
	convert func(*O) (*F, []error)
	apply   func(facts.Delta[F])
	problem func(*O, error) // nil: nobody is told of what makes no sense, beside the log
	lines   loglimit.Limit
}

// converted is what becomes of an object before all of a list is together, so
// that a list of objects is never in memory as such; facts nil: of no interest.
type converted[F any] struct{ facts *F }

// GetObjectKind implements runtime.Object.
func (c *converted[F]) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. Nobody changes facts.
func (c *converted[F]) DeepCopyObject() runtime.Object { return c }

func (f *follower[O, F]) reflector(client rest.Interface, resource string, example *O, sel selection) *cache.Reflector {
	longest := lastRetry
	if f.luck.optional {
		longest = lastOptionalRetry
	}
	return cache.NewReflectorWithOptions(f.listWatch(client, resource, sel), example, f, cache.ReflectorOptions{
		Name:            "switchyard/" + resource,
		TypeDescription: f.luck.what,
		Backoff:         retries(longest),
	})
}

func (f *follower[O, F]) listWatch(client rest.Interface, resource string, sel selection) cache.ListerWatcher {
	request := func(o metav1.ListOptions) *rest.Request {
		o.LabelSelector, o.FieldSelector = sel.labels, sel.fields
		return client.Get().Resource(resource).VersionedParams(&o, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			objects, err := lister{f.source.decoder, f.item()}.list(ctx, request(o))
			f.luck.note(ctx, err)
			return objects, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			r := request(o)
			if !f.source.compress {
				r.SetHeader("Accept-Encoding", "identity")
			}
			w, err := r.Watch(ctx)
			// An API server that does not stream lists calls the request invalid. It
			// is asked for a list next.
			if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) {
				f.luck.note(ctx, err)
			}
			if err != nil {
				return nil, err
			}
			return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
				f.luck.heard()
				return e, true
			}), nil
		},
	}
}

// item returns what converts objects in protobuf, one after the other.
func (f *follower[O, F]) item() func([]byte) (runtime.Object, error) {
	var room O
	object, ok := any(&room).(interface {
		Reset()
		Unmarshal([]byte) error
	})
	return func(text []byte) (runtime.Object, error) {
		if !ok {
			return nil, fmt.Errorf("%s: %T is not known in protobuf", f.luck.what, &room)
		}
		object.Reset()
		if err := object.Unmarshal(text); err != nil {
			return nil, err
		}
		return f.transform(&room)
	}
}

// Add implements cache.ReflectorStore.
func (f *follower[O, F]) Add(obj any) error { return f.put(obj) }

// Update implements cache.ReflectorStore.
func (f *follower[O, F]) Update(obj any) error { return f.put(obj) }

func (f *follower[O, F]) put(obj any) error {
	got, err := f.transform(obj)
	if err != nil {
		return err
	}
	if got.facts == nil { // of no interest any more, if it was before
		return f.Delete(obj)
	}
	f.apply(facts.Delta[F]{Put: []*F{got.facts}})
	return nil
}

// Delete implements cache.ReflectorStore.
func (f *follower[O, F]) Delete(obj any) error {
	m, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("%s: an unexpected %T", f.luck.what, obj)
	}
	f.apply(facts.Delta[F]{Remove: []facts.Name{{Namespace: m.GetNamespace(), Name: m.GetName()}}})
	return nil
}

// Replace implements cache.ReflectorStore.
func (f *follower[O, F]) Replace(list []any, _ string) error {
	put := make([]*F, 0, len(list))
	for _, obj := range list {
		got, err := f.transform(obj)
		if err != nil {
			return err
		}
		if got.facts != nil {
			put = append(put, got.facts)
		}
	}
	f.listing.end()
	f.apply(facts.Delta[F]{All: true, Put: put})
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to repeat.
func (f *follower[O, F]) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a streamed list is gathered
// as facts.
func (f *follower[O, F]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return f.transform(obj) }
}

func (f *follower[O, F]) transform(obj any) (*converted[F], error) {
	switch obj := obj.(type) {
	case *converted[F]:
		return obj, nil
	case *O:
		fact, problems := f.convert(obj)
		for _, p := range problems {
			f.warn(nameOf(obj), p)
			if f.problem != nil {
				f.problem(obj, p)
			}
		}
		return &converted[F]{fact}, nil
	}
	return nil, fmt.Errorf("%s: an unexpected %T", f.luck.what, obj)
}

// warn logs that a part of an object is left out.
func (f *follower[O, F]) warn(object string, problem error) {
	others, ok := f.lines.May(1)
	if !ok {
		return
	}
	args := []any{"kind", f.luck.what, "object", object, "error", problem}
	if others > 0 {
		args = append(args, "others", others)
	}
	f.source.log.Warn("a part of an object makes no sense and is left out", args...)
}

func nameOf(obj any) string {
	if m, ok := obj.(metav1.Object); ok {
		return facts.Name{Namespace: m.GetNamespace(), Name: m.GetName()}.String()
	}
	return ""
}

// luck tells the log how requests fare: when they begin to fail, why, now and
// then that they still do, and that they are well again. One reflector notes one
// request at a time.
type luck struct {
	what     string // for the log
	optional bool   // the API server may not have it
	log      *slog.Logger

	mu      sync.Mutex
	last    time.Time // when the API server was last heard of
	failing error     // nil: all is well
	since   time.Time
	told    time.Time
}

// heard notes a sign of life.
func (l *luck) heard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
}

func (l *luck) contact(resource string) Contact {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := Contact{Resource: resource, Last: l.last, Err: l.failing, Optional: l.optional}
	if l.failing != nil {
		c.Failing = l.since
	}
	return c
}

func (l *luck) note(ctx context.Context, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.last = time.Now()
	}
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if l.failing != nil {
			l.log.Info("the API server answers again", "kind", l.what, "after", time.Since(l.since).Round(time.Millisecond))
		}
		l.failing = nil
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err): // an old watch, to be begun anew
	default:
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which is another one with each request
		}
		now := time.Now()
		before := l.failing
		if l.failing = err; before == nil {
			l.since = now
		}
		if before != nil && before.Error() == err.Error() && now.Sub(l.told) < repeat {
			return
		}
		l.told = now
		l.tell(err)
	}
}

func (l *luck) tell(err error) {
	if l.optional && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)) {
		l.log.Debug("the API server does not have a kind of objects; going on without", "kind", l.what, "error", err)
		return
	}
	l.log.Warn("cannot list or watch objects; keeping the last known state and trying again",
		"kind", l.what, "failing", time.Since(l.since).Round(time.Second), "error", err)
}
