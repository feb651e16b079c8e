package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

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
		{"once, whichever words", func(r *Recorder) { r.Wrong(web, Conflict, "x"); r.Wrong(web, Conflict, "y") }, "Warning shop/web AddressInUse"},
		{"for each reason", func(r *Recorder) { r.Wrong(web, Conflict, "x"); r.Wrong(web, Malformed, "x") }, "Warning shop/web AddressInUse, Warning shop/web MalformedService"},
		{"of another Service by the same name", func(r *Recorder) {
			r.Wrong(web, Conflict, "x")
			r.Wrong(Service{"shop", "web", "4567"}, Conflict, "x")
		}, "Warning shop/web AddressInUse, Warning shop/web AddressInUse"},
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

// TestAFlood: how many Events an hour a node sends, however much is wrong.
func TestAFlood(t *testing.T) {
	for _, c := range []struct {
		name       string
		namespaces int
		want       int
	}{
		{"of one tenant", 1, mostOfNamespace},
		{"of two", 2, 2 * mostOfNamespace},
		{"of many", 100, mostInAll},
	} {
		t.Run(c.name, func(t *testing.T) {
			flood := func(r *Recorder) {
				for i := range 3000 {
					s := Service{fmt.Sprint("tenant-", i%c.namespaces), fmt.Sprint("service-", i), fmt.Sprint("uid-", i)}
					r.Wrong(s, Conflict, "x")
					time.Sleep(time.Millisecond)
				}
			}
			if got := len(sent(t, time.Minute, well, flood)); got != c.want {
				t.Errorf("%d Events in an hour, want %d", got, c.want)
			}
			again := func(r *Recorder) { flood(r); time.Sleep(again); flood(r) }
			if got := len(sent(t, time.Minute, well, again)); got != 2*c.want {
				t.Errorf("%d Events in two hours, want %d", got, 2*c.want)
			}
		})
	}
}

// TestWhatHasNoRoomIsToldLater: what did not fit in the queue was not told.
func TestWhatHasNoRoomIsToldLater(t *testing.T) {
	r := New(slog.New(slog.DiscardHandler), "node-1", func(context.Context, *eventsv1.Event) error { return nil })
	for range mostWaiting {
		r.Starting()
	}
	web := Service{"shop", "web", "0123"}
	r.Wrong(web, Conflict, "x")
	<-r.queue
	r.Wrong(web, Conflict, "x")
	if len(r.queue) != mostWaiting {
		t.Errorf("%d Events wait, want %d", len(r.queue), mostWaiting)
	}
}

// TestLongNotes: a note that is too long ends with a whole rune.
func TestLongNotes(t *testing.T) {
	for _, note := range []string{strings.Repeat("x", 2000), strings.Repeat("ü", 2000), "x" + strings.Repeat("ü", 2000), strings.Repeat("日", 2000), "xx" + strings.Repeat("😀", 2000)} {
		got := sent(t, time.Second, well, func(r *Recorder) { r.Wrong(Service{"shop", "web", ""}, Conflict, note) })
		if n := got[0].Note; !utf8.ValidString(n) || len(n) > longestNote || len(n) < longestNote-5 || !strings.HasSuffix(n, "…") {
			t.Errorf("a note of %d bytes: …%q", len(n), n[len(n)-8:])
		}
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

// TestTenantsCannotSilenceTheNode: what is wrong with many tenants' Services takes
// no room from what this node cannot do.
func TestTenantsCannotSilenceTheNode(t *testing.T) {
	r := New(slog.New(slog.DiscardHandler), "n1", func(context.Context, *eventsv1.Event) error { return nil })
	for ns := range 20 {
		for s := range mostOfNamespace {
			r.Wrong(Service{fmt.Sprint("tenant-", ns), fmt.Sprint("s", s), "u"}, Malformed, "x")
		}
	}
	before := len(r.queue)
	r.Wrong(Service{"shop", "lb", "u"}, HealthCheck, "cannot listen")
	r.Wrong(Service{"shop", "web", "u"}, Refused, "refused")
	if n := len(r.queue) - before; before != mostInAll || n != 2 {
		t.Errorf("%d Events of tenants, then %d of the node; want %d and 2", before, n, mostInAll)
	}
}
