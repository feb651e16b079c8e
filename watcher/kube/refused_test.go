package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/kube"
)

// TestRefusedEventsCutNoWatch: a quota or a webhook refuses Events on every API
// server. That says nothing of the server, whose watches go on.
func TestRefusedEventsCutNoWatch(t *testing.T) {
	var cut atomic.Int64
	server := func() string {
		api := newAPIServer()
		api.shop()
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				fail(w, http.StatusTooManyRequests)
				return
			}
			if strings.Contains(r.URL.RawQuery, "watch") {
				defer cut.Add(1)
			}
			api.ServeHTTP(w, r)
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	a, b := server(), server()
	s, err := kube.New(kube.Options{Master: "http://" + a, Servers: []string{a, b}, NodeName: "here", Log: slog.New(slog.DiscardHandler), QPS: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	known := make(chan struct{}, 100)
	go func() { _ = s.Run(ctx, func(facts.Change) { known <- struct{}{} }) }()
	<-known
	for n := range 12 {
		_ = s.SendEvent(ctx, &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("e", n)}})
	}
	time.Sleep(200 * time.Millisecond)
	if n := cut.Load(); n > 0 {
		t.Errorf("%d watches were ended because Events were refused", n)
	}
}

// TestMalformedObjectsWriteLittle: whoever edits a Service writes a bounded number
// of bounded lines on each node.
func TestMalformedObjectsWriteLittle(t *testing.T) {
	api := newAPIServer()
	api.shop()
	a := start(t, serve(t, api).URL)
	within(t, "the first list", func() bool { return a.last() != nil })
	written := func() int {
		a.log.mu.Lock()
		defer a.log.mu.Unlock()
		return a.log.b.Len()
	}
	before := written()
	big := strings.Repeat("x", 200_000)
	for n := range 50 {
		bad := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9"}, Ports: []corev1.ServicePort{{Port: 80}}}}
		bad.TypeMeta, bad.ObjectMeta = meta(servicesPath, "bad")
		bad.Annotations = map[string]string{facts.SchedulerAnnotation: big, "n": fmt.Sprint(n)}
		api.set(servicesPath, bad)
		time.Sleep(5 * time.Millisecond)
	}
	within(t, "lines", func() bool { return a.log.count("makes no sense") > 0 })
	time.Sleep(300 * time.Millisecond)
	if lines, bytes := a.log.count("makes no sense"), written()-before; lines > 20 || bytes > 20_000 {
		t.Errorf("50 edits of one Service wrote %d lines, %d bytes", lines, bytes)
	}
}
