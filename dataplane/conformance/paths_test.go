package conformance

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
)

var pathsFlag = flag.Int("paths", 0, "measure this many rounds of traffic through each column, and nothing else; 0: none")

// onePath is how long one path is measured in one round.
const onePath = 500 * time.Millisecond

// path is a way to an endpoint: straight, or by a frontend.
type path struct {
	name     string
	client   string
	to       dataplane.Kind
	straight bool
	service  string
}

// paths come in groups; each group begins with the straight way that the others
// are compared to.
func paths() []path {
	return []path{
		{name: "pod to pod on its node", client: "a3", straight: true, service: "here"},
		{name: "pod to ClusterIP, endpoint on its node", client: "a3", to: clusterIP, service: "here"},
		{name: "pod to pod on another node", client: "a3", straight: true, service: "there"},
		{name: "pod to ClusterIP, endpoint on another node", client: "a3", to: clusterIP, service: "there"},
		{name: "outside to pod on that node", client: "outside", straight: true, service: "here"},
		{name: "outside to NodePort, endpoint on that node", client: "outside", to: nodePort, service: "here"},
		{name: "outside to pod on another node", client: "outside", straight: true, service: "there"},
		{name: "outside to NodePort, endpoint on another node", client: "outside", to: nodePort, service: "there"},
	}
}

// rates are the rounds' requests a second: over one TCP connection, and each
// over a new one.
type rates struct{ requests, connects []float64 }

// TestPaths measures what traffic through each column costs against straight
// to the pod, round by round in turn, so that what else the machine does hits
// all alike. Run it on a machine that is idle otherwise:
//
//	go test ./dataplane/conformance -run TestPaths -paths 9 -backend=ebpf
func TestPaths(t *testing.T) {
	if *pathsFlag == 0 {
		t.Skip("measures only with -paths")
	}
	var runs []*run
	for _, col := range columns() {
		if *backendFlag != "" && *backendFlag != col.name && *backendFlag != col.backend {
			continue
		}
		if err := supported(t.Context(), col); err != nil {
			t.Logf("without %s: %v", col.name, err)
			continue
		}
		r := &run{T: t, suite: newSuite(t, col), id: 1}
		r.ensureAgents()
		both := frontendsOf([]dataplane.Kind{clusterIP, nodePort}, frontend{snat: dataplane.SNATNonPods})
		with := func(endpoint string) []frontend {
			fs := slices.Clone(both)
			for i := range fs {
				fs[i].pool = on(endpoint)
			}
			return fs
		}
		r.sync(world{services: []service{{name: "here", frontends: with("a1")}, {name: "there", frontends: with("b1")}}})
		runs = append(runs, r)
	}
	measured := make([][]rates, len(runs))
	for range *pathsFlag {
		for i, r := range runs {
			measured[i] = append(measured[i], make([]rates, len(paths())-len(measured[i]))...)
			for k, p := range paths() {
				requests, connects := r.measure(p)
				measured[i][k].requests = append(measured[i][k].requests, requests)
				measured[i][k].connects = append(measured[i][k].connects, connects)
			}
		}
	}
	printPaths(runs, measured)
}

// measure gives the rates of one path in one round.
func (r *run) measure(p path) (requests, connects float64) {
	r.Helper()
	req := netlab.Request{Protocol: netlab.TCP, Timeout: answerTime}
	endpoint := map[string]string{"here": "a1", "there": "b1"}[p.service]
	switch {
	case p.straight:
		req.To = netip.AddrPortFrom(r.host(endpoint).Addr(4), serverPort)
	case p.to == nodePort:
		req.To = netip.AddrPortFrom(r.node("node-a").Addr(4), r.frontendAddr(r.service(p.service), nodePort, dataplane.IPv4).Port())
	default:
		req.To = r.frontendAddr(r.service(p.service), p.to, dataplane.IPv4)
	}
	rate := func(l *netlab.Load, err error) float64 {
		r.Helper()
		r.must(err)
		start := time.Now()
		time.Sleep(onePath)
		tally, err := l.Stop()
		r.must(err)
		if tally.Failed > 0 || tally.ByServer[endpoint] == 0 {
			r.Errorf("%s, %s: %s", r.col.name, p.name, tally)
		}
		return float64(tally.Requests) / time.Since(start).Seconds()
	}
	const atOnce = time.Nanosecond // the next one as soon as the last is answered
	requests = rate(r.host(p.client).Hold(req, atOnce))
	connects = rate(r.host(p.client).Load(req, 1, atOnce))
	return requests, connects
}

// printPaths prints medians, and the median over rounds of each round's ratio
// to the straight way.
func printPaths(runs []*run, measured [][]rates) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "column\tpath\trequests/s\tagainst straight\tnew connections/s\tagainst straight")
	for i, r := range runs {
		var straight rates
		for k, p := range paths() {
			m := measured[i][k]
			if p.straight {
				straight = m
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%.0f\t%.3f\t%.0f\t%.3f\n", r.col.name, p.name,
				median(m.requests), median(ratios(m.requests, straight.requests)), median(m.connects), median(ratios(m.connects, straight.connects)))
		}
	}
	_ = w.Flush() // to standard output
}

func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
