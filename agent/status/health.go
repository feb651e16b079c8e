// Package status tells people and machines how the agent is doing: /healthz, /livez, /readyz and /metrics.
package status

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Health answers for the agent's state. Its handlers serve any method.
type Health struct {
	Families []dataplane.Family
	// BehindLimit is how long the kernel may lack something wanted before the
	// agent calls itself unhealthy. Services that the backend refuses one by one do
	// not count: every node has the same ones, and load balancers would find none
	// left.
	BehindLimit time.Duration
	Sync        func() dataplane.SyncStatus
	// NodeEligible is whether load balancers should send traffic to this node:
	// it is known, not being deleted, and not marked for removal by the cluster
	// autoscaler (KEP-3836).
	NodeEligible func() bool
	// Waiting is what the first Snapshot waits for, and what is wrong with the
	// input now; "": nothing.
	Waiting func() string
	Now     func() time.Time
}

// answer is kube-proxy's body, field for field (KUBE-PROXY §2.3). Unlike
// kube-proxy's, lastUpdated is the time when the kernel last agreed with what
// is wanted, in good health too.
type answer struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Ready        *bool                   `json:"ready,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Reason       string                  `json:"reason,omitempty"` // why not healthy or not ready, or what else is wrong
	Status       map[string]familyAnswer `json:"status"`
}

type familyAnswer struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Healthy is false while the kernel lacks something wanted for longer than
// BehindLimit.
func (h *Health) Healthy() bool {
	ok, _ := h.healthy(h.Sync())
	return ok
}

// Ready reports whether the kernel held all that was wanted, but for what is
// refused, once, has not been damaged by others since, and no family falls behind
// for longer than BehindLimit.
func (h *Health) Ready() bool { return h.ready(h.Sync()) }

func (h *Health) ready(s dataplane.SyncStatus) bool {
	ok, _ := h.healthy(s)
	return ok && s.Served > 0 && s.Damaged.IsZero() && len(h.failing(s)) == 0
}

// failing returns the families that are not programmed for longer than BehindLimit,
// while others are. They do not make the agent unhealthy: a restart would mend
// nothing, and take the health checks of the others away.
func (h *Health) failing(s dataplane.SyncStatus) map[dataplane.Family]dataplane.FamilyStatus {
	out := map[dataplane.Family]dataplane.FamilyStatus{}
	for _, f := range s.Failing {
		if h.Now().Sub(f.Since) > h.BehindLimit {
			out[f.Family] = f
		}
	}
	return out
}

func (h *Health) healthy(s dataplane.SyncStatus) (ok bool, why string) {
	if s.Behind.IsZero() || h.Now().Sub(s.Behind) <= h.BehindLimit {
		switch {
		case len(s.Failing) > 0:
			f := s.Failing[0]
			why = fmt.Sprintf("%s is not programmed since %s: %v", f.Family, f.Since.UTC().Format(time.RFC3339), f.Err)
		case len(s.Refused) > 0:
			why = fmt.Sprintf("%v (%d refused in all)", s.Refused[0], len(s.Refused))
		}
		return true, why
	}
	why = "the kernel lacks something wanted since " + s.Behind.UTC().Format(time.RFC3339)
	if s.Err != nil {
		why += ": " + s.Err.Error()
	}
	return false, why
}

// Healthz is 200 while the agent is healthy and the node may take traffic from
// load balancers.
func (h *Health) Healthz() http.Handler {
	return h.handler(func(a *answer, _ dataplane.SyncStatus) int {
		eligible := h.NodeEligible()
		a.NodeEligible = &eligible
		return codeFor(a.Healthy && eligible)
	})
}

// Livez is 200 while the agent is healthy.
func (h *Health) Livez() http.Handler {
	return h.handler(func(a *answer, _ dataplane.SyncStatus) int { return codeFor(a.Healthy) })
}

// Readyz is 200 while the agent is Ready.
func (h *Health) Readyz() http.Handler {
	return h.handler(func(a *answer, s dataplane.SyncStatus) int {
		ready := h.ready(s)
		a.Ready = &ready
		switch {
		case a.Healthy && !s.Damaged.IsZero():
			a.Reason = "the kernel is not as it was programmed and is being repaired, since " + s.Damaged.UTC().Format(time.RFC3339)
		case a.Reason != "":
		case s.Served > 0:
			a.Reason = h.Waiting()
		case s.Wanted == 0:
			a.Reason = "nothing is known yet: " + h.Waiting()
		case s.Err != nil:
			a.Reason = "nothing is programmed yet: " + s.Err.Error()
		default:
			a.Reason = "the first programming of the kernel goes on"
		}
		return codeFor(ready)
	})
}

func codeFor(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

func (h *Health) handler(judge func(*answer, dataplane.SyncStatus) int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := h.Sync()
		a := answer{LastUpdated: s.LastSync, CurrentTime: h.Now(), Status: map[string]familyAnswer{}}
		a.Healthy, a.Reason = h.healthy(s)
		failing := h.failing(s)
		for _, f := range h.Families {
			_, fails := failing[f]
			a.Status[f.String()] = familyAnswer{LastUpdated: lastUpdated(s, f), Healthy: a.Healthy && !fails}
		}
		code := judge(&a, s)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(a) // the client may be gone
	})
}

// lastUpdated is when a family last lacked nothing that is wanted.
func lastUpdated(s dataplane.SyncStatus, f dataplane.Family) time.Time {
	others := len(s.Failing) > 0 && !slices.ContainsFunc(s.Failing, func(failing dataplane.FamilyStatus) bool { return failing.Family == f })
	if others {
		return s.LastPart
	}
	return s.LastSync
}

// counted counts the answers of a handler by code.
func counted(c *prometheus.CounterVec, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &codeRecorder{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(rec, r)
		c.WithLabelValues(codeLabel(rec.code)).Inc()
	})
}

type codeRecorder struct {
	http.ResponseWriter
	code int
}

func (r *codeRecorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}
