package report

import (
	"fmt"
	"math"
	"strings"

	"github.com/switchyard-io/switchyard/bench/result"
)

// percent makes a share readable.
const percent = 100

// noDifference is printed for what may be noise.
const noDifference = "no difference seen"

// unmeasured is the cell of what has no figure.
const unmeasured = "–"

// value has three significant digits, and no fewer before the point than there are.
func value(v float64) string {
	switch a := math.Abs(v); {
	case a >= 999.5:
		return result.Thousands(int(math.Round(v)))
	case a >= 99.95 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// quantity returns a value with its unit.
func quantity(v float64, unit string) string { return strings.TrimSpace(value(v) + " " + unit) }

// share writes a difference with its interval.
func share(i result.Interval) string {
	return fmt.Sprintf("%+.1f %% [%+.1f %+.1f]", percent*i.Median, percent*i.Low, percent*i.High)
}

// absolute writes the median of a series, with its interval if there are several samples.
func absolute(s *result.Series) string {
	switch {
	case s == nil || len(s.Samples) == 0:
		return unmeasured
	case s.Over:
		return unfinished(s)
	case len(s.Samples) > 1:
		i := s.Interval()
		return fmt.Sprintf("%s [%s %s]", value(i.Median), value(i.Low), value(i.High))
	}
	return value(s.Median())
}

// unfinished says how long a proxy had for what it did not finish.
func unfinished(s *result.Series) string {
	if s.Median() == 0 {
		return "did not finish"
	}
	return "did not finish in " + quantity(s.Median(), s.Unit)
}

// compared writes how a series differs from its reference in the same rounds;
// "" if too few rounds have both.
func compared(r *result.Report, row result.Key, s, reference *result.Series) string {
	if s == nil || reference == nil || s.Over || reference.Over || min(len(s.Samples), len(reference.Samples)) < result.Fewest {
		return ""
	}
	i := s.Against(reference)
	if !r.Seen(row, i) {
		return noDifference
	}
	return share(i)
}

// base is the name of a proxy without what tells its columns apart: a second column
// of the same, its flags and its binary.
func base(proxy string) string {
	proxy, _, _ = strings.Cut(strings.TrimSuffix(proxy, result.Again), "@")
	proxy, _, _ = strings.Cut(proxy, "+")
	return proxy
}

// spoken is the name of a proxy in a sentence.
func spoken(proxy string) string {
	for prefix, name := range map[string]string{ours: "Switchyard ", "kube-proxy-": "kube-proxy "} {
		if rest, ok := strings.CutPrefix(proxy, prefix); ok {
			return name + strings.NewReplacer("ebpf", "eBPF", "ipvs", "IPVS").Replace(rest)
		}
	}
	return proxy
}

// ours begins the names of Switchyard's backends.
const ours = "switchyard-"

// own returns Switchyard's backends in a report, each once.
func own(r *result.Report) []string {
	var all []string
	for _, p := range r.Proxies {
		if strings.HasPrefix(p, ours) && !strings.HasSuffix(p, result.Again) {
			all = append(all, p)
		}
	}
	return all
}

// theirs returns kube-proxy's modes in a report, the newest first.
func theirs(r *result.Report) []string {
	var all []string
	for _, mode := range []string{"nftables", "iptables", "ipvs"} {
		for _, p := range r.Proxies {
			if p == "kube-proxy-"+mode {
				all = append(all, p)
			}
		}
	}
	return all
}

// capital makes the first letter a capital.
func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// size says how many Services a row had.
func size(row result.Key) string {
	if row.Services == 0 {
		return ""
	}
	return ", " + result.Thousands(row.Services) + " Services"
}
