package status

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Pages is what kube-proxy's port 10249 shows (KUBE-PROXY §2.3).
type Pages struct {
	Metrics   *Metrics
	Health    *Health
	Backend   string
	Version   string
	Started   time.Time
	Config    func() map[string]any // for /configz: the documents, by API group
	Flags     map[string]string     // for /flagz; nil: no such page
	Statusz   bool
	Profiling bool
	// SetVerbosity changes how much is logged, for /debug/flags/v; nil: no such page.
	SetVerbosity func(level int)
}

// local serves a page to clients on this node alone, on whatever address the
// server listens: a profile costs processor time, and shows what memory holds.
func local(page http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "this page is for clients at a loopback address of the node; kubectl port-forward is one", http.StatusForbidden)
			return
		}
		page(w, r)
	})
}

// MetricsMux serves the pages.
func MetricsMux(p Pages) http.Handler {
	mux := &listing{mux: http.NewServeMux()}
	mux.handle("/metrics", promhttp.HandlerFor(p.Metrics.registry, promhttp.HandlerOpts{}))
	mux.handle("/metrics/slis", p.slis())
	mux.handle("/healthz", text("ok"))
	mux.handle("/proxyMode", text(p.Backend))
	mux.handle("/configz", http.HandlerFunc(p.configz))
	if p.Flags != nil {
		mux.handle("/flagz", http.HandlerFunc(p.flagz))
	}
	if p.Profiling {
		mux.handle("/debug/pprof/", local(pprof.Index))
		mux.handle("/debug/pprof/cmdline", local(pprof.Cmdline))
		mux.handle("/debug/pprof/profile", local(pprof.Profile))
		mux.handle("/debug/pprof/symbol", local(pprof.Symbol))
		mux.handle("/debug/pprof/trace", local(pprof.Trace))
		if p.SetVerbosity != nil {
			mux.handle("/debug/flags/v", local(p.verbosity))
		}
	}
	if p.Statusz {
		mux.handle("/statusz", p.statusz(mux))
	}
	return mux.mux
}

// listing is a mux that knows its paths.
type listing struct {
	mux   *http.ServeMux
	paths []string
}

func (l *listing) handle(path string, h http.Handler) {
	l.paths = append(l.paths, path)
	l.mux.Handle(path, h)
}

func (p Pages) configz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(p.Config()) // the client may be gone
}

func (p Pages) flagz(w http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	b.WriteString("\nflags of switchyard\nFor people: its form may change.\n\n")
	for _, name := range slices.Sorted(maps.Keys(p.Flags)) {
		fmt.Fprintf(&b, "%s=%s\n", name, p.Flags[name])
	}
	text(b.String())(w, r)
}

// verbosity takes a level by PUT, until the configuration says another.
func (p Pages) verbosity(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		w.Header().Set("Allow", http.MethodPut)
		http.Error(w, "PUT a level, for example 4", http.StatusMethodNotAllowed)
		return
	}
	const digits = 16
	body, err := io.ReadAll(io.LimitReader(r.Body, digits))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	level, err := strconv.ParseUint(strings.TrimSpace(string(body)), 10, 31)
	if err != nil {
		http.Error(w, fmt.Sprintf("%q is no level: a whole number from 0", body), http.StatusBadRequest)
		return
	}
	p.SetVerbosity(int(level))
	text(fmt.Sprintf("successfully set the verbosity to %d\n", level))(w, r)
}

func (p Pages) statusz(l *listing) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text(fmt.Sprintf("\nstatus of switchyard\nFor people: its form may change.\n\n"+
			"Started: %s\nUp: %s\nGo version: %s\nBinary version: %s\nBackend: %s\nPaths: %s\n",
			p.Started.Format(time.RFC3339), time.Since(p.Started).Round(time.Second), runtime.Version(), p.Version, p.Backend,
			strings.Join(l.paths, " ")))(w, r)
	})
}

// slis is the health checks as metrics, with the names of Kubernetes' components.
func (p Pages) slis() http.Handler {
	reg := prometheus.NewRegistry()
	for kind, ok := range map[string]func() bool{
		"healthz": func() bool { return p.Health.Healthy() && p.Health.NodeEligible() },
		"livez":   p.Health.Healthy,
		"readyz":  p.Health.Ready,
	} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "kubernetes_healthcheck", Help: "Whether a health check passes: 1 or 0.",
			ConstLabels: prometheus.Labels{"name": "kernel", "type": kind},
		}, func() float64 {
			if ok() {
				return 1
			}
			return 0
		}))
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}
