package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// question is one that a user has, with its figures.
type question struct {
	Title   string
	About   string // what the figures are of
	Picture *picture
	Table   grid
}

// questions returns those that the run answers; the first is about changes, whose
// cost is what tells proxies apart most.
func questions(r *result.Report) ([]question, error) {
	var all []question
	for _, ask := range []func(*result.Report) (question, error){changes, requests, connections, services, starts, memory} {
		q, err := ask(r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", q.Title, err)
		}
		if q.Picture != nil || !q.Table.empty() {
			all = append(all, q)
		}
	}
	return all, nil
}

// rowsOf returns the rows of a part that are wanted.
func rowsOf(r *result.Report, part string, want func(result.Key) bool) []result.Key {
	return slices.DeleteFunc(r.Rows(part), func(row result.Key) bool { return !want(row) })
}

// full names a row of a table of several cases.
func full(row result.Key) string {
	if row.Metric == result.Time || row.Metric == result.Mean {
		return row.Case + size(row)
	}
	return row.Case + size(row) + ": " + row.Metric
}

// changedRow is the row of the changes that the report shows: a metric at the most
// Services at which one of ours has it. ok is false if there is none.
func changedRow(r *result.Report, metric string) (row result.Key, ok bool) {
	row = result.Key{Part: result.ControlPlane, Case: result.EndpointChanged(result.RowPause), Metric: metric}
	return largest(r, row)
}

// largest sets a row's number of Services to the largest that one of ours finished.
func largest(r *result.Report, row result.Key) (result.Key, bool) {
	for _, size := range slices.Backward(sizesOf(r, row)) {
		row.Services = size
		for _, p := range own(r) {
			if s := r.Of(row, p); s != nil && !s.Over {
				return row, true
			}
		}
	}
	return row, false
}

// changes is about how soon a change takes effect.
func changes(r *result.Report) (question, error) {
	q := question{
		Title: "How soon does a change take effect?",
		About: "A Service's only endpoint moves to another node. The time is from the request to the API server to the first answer from the new endpoint. In the plot each change comes 50 ms after the one before is in force. By its defaults kube-proxy waits at least 1 s between two syncs.",
	}
	row, ok := changedRow(r, "p50")
	if !ok {
		return q, nil
	}
	q.Table = sideBySide(r, rowsOf(r, row.Part, func(k result.Key) bool {
		return k.Services == row.Services && strings.HasPrefix(k.Case, "one endpoint changed") && strings.HasPrefix(k.Metric, "p")
	}), full)
	d := dots{title: "One endpoint changes among " + result.Thousands(row.Services) + " Services: time to the first answer", axis: "ms, with 95 % intervals", unit: "ms", log: true}
	for _, m := range []string{"p50", "p99"} {
		row.Metric = m
		d.add(r, m, row, func(s *result.Series) result.Interval { return s.Interval() })
	}
	var err error
	q.Picture, err = d.draw("change")
	return q, err
}

// add adds a kind of figure: a row of each proxy that has it, or that was not ready.
func (d *dots) add(r *result.Report, kind string, row result.Key, interval func(*result.Series) result.Interval) {
	d.kinds = append(d.kinds, kind)
	for _, p := range r.Proxies {
		one := dot{kind: len(d.kinds) - 1}
		if s := r.Of(row, p); s != nil && !s.Over {
			one.Interval = interval(s)
		} else if one.over = overdue(r, row, p); one.over == "" {
			continue
		}
		if one.over != "" && one.kind > 0 {
			continue // said once
		}
		if one.name = slices.Index(d.names, p); one.name < 0 {
			one.name = len(d.names)
			d.names = append(d.names, p)
		}
		d.dots = append(d.dots, one)
	}
}

// beside draws how much a metric differs from that straight to the pod.
func beside(r *result.Report, file, title string, m load.Kind) (*picture, error) {
	d := dots{title: title, axis: "% more than straight to the pod, with 95 % intervals", unit: "%"}
	for _, what := range []string{result.PodToClusterIP, result.OutsideToNodePort} {
		row := result.Key{Part: result.Traffic, Case: what, Metric: string(m)}
		straight := r.Of(row, proxy.Straight)
		if straight == nil || len(straight.Samples) < result.Fewest {
			continue
		}
		d.add(r, what, row, func(s *result.Series) result.Interval { return s.Against(straight).Scale(percent) })
		floor, _ := r.Floor(row)
		d.band = max(d.band, percent*max(floor.High, -floor.Low))
	}
	d.dots = slices.DeleteFunc(d.dots, func(one dot) bool { return d.names[one.name] == proxy.Straight })
	d.drop(proxy.Straight)
	return d.draw(file)
}

// drop removes the line of a proxy that has no dots.
func (d *dots) drop(name string) {
	at := slices.Index(d.names, name)
	if at < 0 {
		return
	}
	d.names = slices.Delete(d.names, at, at+1)
	for i := range d.dots {
		if d.dots[i].name > at {
			d.dots[i].name--
		}
	}
}

// packets is a question about metrics of the two most telling paths.
func packets(r *result.Report, q question, file, title string, metrics ...load.Kind) (question, error) {
	q.Table = sideBySide(r, rowsOf(r, result.Traffic, func(k result.Key) bool {
		return (k.Case == result.PodToClusterIP || k.Case == result.OutsideToNodePort) && slices.Contains(metrics, load.Kind(k.Metric))
	}), func(row result.Key) string { return where(row.Case) + ": " + row.Metric })
	var err error
	q.Picture, err = beside(r, file, title, metrics[0])
	return q, err
}

func requests(r *result.Report) (question, error) {
	return packets(r, question{
		Title: "What does a request cost?",
		About: "64 bytes to a pod on another node and 64 bytes back, over a connection that is open. Client and server take turns on one CPU, so that the time is what all of the way costs.",
	}, "request", "A TCP request over an open connection", load.Requests, load.UDPRequests, load.UDPBatches, load.Throughput)
}

func connections(r *result.Report) (question, error) {
	return packets(r, question{
		Title: "What does a new connection cost?",
		About: "Connect, one request, its answer, close; or one datagram and its answer from a new socket.",
	}, "connection", "A new TCP connection with a request", load.Connections, load.UDPFlows)
}

// services is about the first packet with many Services.
func services(r *result.Report) (question, error) {
	q := question{
		Title: "What does the number of Services cost?",
		About: "The time to connect to a Service that chance picks among all. Differences are to the same proxy with " + result.Thousands(result.Few) + " Services, measured in the same rounds.",
	}
	row := result.Key{Part: result.FirstPacket, Case: result.TimeToConnect, Metric: result.Mean}
	sizes := sizesOf(r, row)
	if len(sizes) == 0 {
		return q, nil
	}
	q.Table = growth(r, row, sizes)
	var err error
	q.Picture, err = bySize(r, "first-packet", "First packet: time to connect to a ClusterIP", row, false)
	return q, err
}

// growth is a table of a metric by the number of Services, each proxy compared with
// itself.
func growth(r *result.Report, row result.Key, sizes []int) grid {
	var rows []result.Key
	for _, row.Services = range sizes {
		rows = append(rows, row)
	}
	columns, _ := columnsOf(r, rows)
	g := grid{words: 1, header: append([]string{"Services"}, columns...)}
	for _, row := range rows {
		line := []string{result.Thousands(row.Services) + ", " + unit(r, row)}
		for _, p := range columns {
			s, fewer := r.Of(row, p), row
			fewer.Services = result.Few
			if d := compared(r, fewer, s, r.Of(fewer, p)); d != "" && row != fewer {
				line = append(line, stack(value(s.Median()), d))
				continue
			}
			line = append(line, absolute(s))
		}
		g.rows = append(g.rows, line)
	}
	return g
}

func starts(r *result.Report) (question, error) {
	q := question{
		Title: "How long is a start?",
		About: "From the start of the process on a node without rules until Services of all the cluster answer, and what comes before that.",
	}
	q.Table = sideBySide(r, rowsOf(r, result.ControlPlane, func(k result.Key) bool {
		return strings.HasPrefix(k.Case, "cold start") || strings.HasPrefix(k.Case, "restart")
	}), full)
	var err error
	q.Picture, err = bySize(r, "cold-start", "Cold start until all Services answer (10 endpoints each)", result.Key{Part: result.ControlPlane, Case: result.ColdStart, Metric: result.Time}, true)
	return q, err
}

func memory(r *result.Report) (question, error) {
	q := question{
		Title: "What does it take of memory?",
		About: "After the start. What the kernel holds in BPF maps is not in a process's resident memory; other rules of the kernel are counted nowhere.",
	}
	q.Table = sideBySide(r, rowsOf(r, result.ControlPlane, func(k result.Key) bool { return strings.HasPrefix(k.Case, result.Memory) }), full)
	var err error
	q.Picture, err = bySize(r, "memory", "Resident memory of the proxy (10 endpoints each)", result.Key{Part: result.ControlPlane, Case: result.Memory, Metric: result.Resident}, false)
	return q, err
}
