package events

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/switchyard-io/switchyard/dataplane"
)

// sent runs f on a Recorder and gives what reached the API server in a time.
// answer is what the API server says to each try.
func sent(t *testing.T, within time.Duration, answer func(try int) error, f func(*Recorder)) []*eventsv1.Event {
	t.Helper()
	var got []*eventsv1.Event
	synctest.Test(t, func(t *testing.T) {
		try := 0
		r := New(slog.New(slog.DiscardHandler), "node-1", func(_ context.Context, e *eventsv1.Event) error {
			try++
			if err := answer(try); err != nil {
				return err
			}
			got = append(got, e)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		go r.Run(ctx)
		f(r)
		time.Sleep(within)
		cancel()
		synctest.Wait()
	})
	return got
}

func well(int) error { return nil }

func noUID(string, string) string { return "" }

// TestWhatIsTold: KUBE-PROXY §2.5, and a Warning for what is wrong with a Service.
func TestWhatIsTold(t *testing.T) {
	web := Service{"shop", "web", "0123"}
	refusal := dataplane.SyncReport{Tried: []dataplane.PortError{
		{ID: dataplane.PortID{Namespace: "shop", Service: "web", Port: "http", Protocol: dataplane.TCP}, Err: errors.New("the endpoints map is full")},
		{ID: dataplane.PortID{Namespace: "shop", Service: "db", Protocol: dataplane.TCP}, Err: errors.New("the endpoints map is full")},
	}}
	for _, c := range []struct {
		name string
		tell func(*Recorder)
		want string // type namespace/name reason, of each
	}{
		{"the start", func(r *Recorder) { r.Starting() }, "Normal default/node-1 Starting"},
		{"an address in use", func(r *Recorder) { r.CannotServe(context.Background(), "health", errors.New("in use")) }, "Warning default/node-1 FailedToStartProxierHealthcheck"},
		{"the other address in use", func(r *Recorder) { r.CannotServe(context.Background(), "metrics", errors.New("in use")) }, "Warning default/node-1 FailedToStartMetricServer"},
		{"once", func(r *Recorder) { r.Wrong(web, Conflict, "x"); r.Wrong(web, Conflict, "x") }, "Warning shop/web AddressInUse"},
		{"in other words", func(r *Recorder) { r.Wrong(web, Conflict, "x"); r.Wrong(web, Conflict, "y") }, "Warning shop/web AddressInUse, Warning shop/web AddressInUse"},
		{"of each Service", func(r *Recorder) { r.Synced(refusal, noUID); r.Synced(refusal, noUID) }, "Warning shop/web FailedToProgram, Warning shop/db FailedToProgram"},
		{"of a Sync that failed as a whole", func(r *Recorder) { r.Synced(dataplane.SyncReport{Err: errors.New("x")}, noUID) }, ""},
		{"once more when it is forgotten", func(r *Recorder) {
			r.Wrong(web, Conflict, "x")
			time.Sleep(again)
			r.Wrong(web, Conflict, "x")
		}, "Warning shop/web AddressInUse, Warning shop/web AddressInUse"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, e := range sent(t, time.Second, well, c.tell) {
				got = append(got, e.Type+" "+e.Namespace+"/"+e.Regarding.Name+" "+e.Reason)
				if e.ReportingController != "kube-proxy" || e.ReportingInstance != "kube-proxy-node-1" || e.Action == "" || e.EventTime.IsZero() {
					t.Errorf("the API would refuse %+v", e)
				}
			}
			if s := strings.Join(got, ", "); s != c.want {
				t.Errorf("told %q, want %q", s, c.want)
			}
		})
	}
}

func TestTheAPIServerIsAskedAgain(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("no"))
	busy := apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "create", schema.GroupResource{}, "", "", 0, false)
	for _, c := range []struct {
		name   string
		answer func(int) error
		want   int
	}{
		{"well", well, 2},
		{"not there at first", func(try int) error {
			if try < 3 {
				return errors.New("connection refused")
			}
			return nil
		}, 2},
		{"busy at first", func(try int) error {
			if try == 1 {
				return busy
			}
			return nil
		}, 2},
		{"forbidden is final", func(try int) error {
			if try == 1 {
				return forbidden
			}
			return nil
		}, 1},
		{"never there", func(int) error { return errors.New("connection refused") }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := sent(t, time.Minute, c.answer, func(r *Recorder) {
				r.Starting()
				r.Wrong(Service{"shop", "web", ""}, Conflict, strings.Repeat("x", 5000))
			})
			if len(got) != c.want {
				t.Errorf("%d events, want %d", len(got), c.want)
			}
			for _, e := range got {
				if len(e.Note) > 1024 {
					t.Errorf("a note of %d bytes", len(e.Note))
				}
			}
		})
	}
}

// TestWithoutAnAPIServer: nothing is kept for nobody.
func TestWithoutAnAPIServer(t *testing.T) {
	r := New(slog.New(slog.DiscardHandler), "node-1", nil)
	r.Starting()
	r.Wrong(Service{"shop", "web", ""}, Conflict, "x")
	r.CannotServe(t.Context(), "health", errors.New("x"))
	r.Synced(dataplane.SyncReport{Tried: []dataplane.PortError{{Err: errors.New("x")}}}, noUID)
	if len(r.queue) > 0 || len(r.told) > 0 {
		t.Errorf("%d events wait", len(r.queue))
	}
}
