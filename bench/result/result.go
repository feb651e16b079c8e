// Package result is what a benchmark measured: samples by proxy, case and round, and what they say.
package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Report is all that one run measured.
type Report struct {
	Version string // of Switchyard
	Started time.Time
	Took    time.Duration
	Quick   bool
	Machine Machine
	Proxies []string // in the order of the tables
	Without []string // what is not in it, and why
	Notes   []string // what a reader has to know
	Series  []*Series
	Curves  []*Curve

	mu sync.Mutex
}

// Key tells series apart.
type Key struct {
	Part     string // "traffic", "first packet", "control plane"
	Case     string
	Metric   string
	Proxy    string
	Services int // how many there were; 0: does not matter
}

// Series is the samples of one metric, one for each round.
type Series struct {
	Key
	Unit    string
	More    bool // more is better
	Samples []float64
	Over    bool   // it did not end in the time it had: the sample is that time
	Note    string // what it is about
}

// Curve is a distribution of times, all rounds together.
type Curve struct {
	Key
	Points []Point
	Count  int64
}

// Point says that this share of the requests took no longer.
type Point struct{ Quantile, Microseconds float64 }

// Add adds a sample to the series of a key.
func (r *Report) Add(s Series, sample float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, have := range r.Series {
		if have.Key == s.Key {
			have.Samples = append(have.Samples, sample)
			have.Over = have.Over || s.Over
			return
		}
	}
	s.Samples = []float64{sample}
	r.Series = append(r.Series, &s)
}

// Find is the series of a key; nil: there is none.
func (r *Report) Find(k Key) *Series {
	for _, s := range r.Series {
		if s.Key == k {
			return s
		}
	}
	return nil
}

// Rows are the keys of a part without their proxies, in the order measured.
func (r *Report) Rows(part string) []Key {
	var rows []Key
	for _, s := range r.Series {
		k := s.Key
		k.Proxy = ""
		if s.Part == part && !slices.Contains(rows, k) {
			rows = append(rows, k)
		}
	}
	return rows
}

// Of is the series of a row's proxy; nil: it was not measured.
func (r *Report) Of(row Key, proxy string) *Series {
	row.Proxy = proxy
	return r.Find(row)
}

// Median is the middle sample.
func (s *Series) Median() float64 { return quantile(s.Samples, half) }

// Spread is half of the distance between the quartiles, as a share of the median.
func (s *Series) Spread() float64 {
	m := s.Median()
	if m == 0 || len(s.Samples) < 2 {
		return 0
	}
	return (quantile(s.Samples, 0.75) - quantile(s.Samples, 0.25)) / 2 / m
}

// quantile interpolates between the samples beside it.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	at := q * float64(len(s)-1)
	low := int(at)
	high := min(low+1, len(s)-1)
	return s[low] + (s[high]-s[low])*(at-float64(low))
}

// figures of a sample that are worth keeping: more would be noise, and twice the file.
const figures = 4

// MarshalJSON implements json.Marshaler. It rounds samples.
func (s *Series) MarshalJSON() ([]byte, error) {
	type plain Series
	rounded := plain(*s)
	rounded.Samples = make([]float64, len(s.Samples))
	for i, v := range s.Samples {
		var err error
		if rounded.Samples[i], err = strconv.ParseFloat(strconv.FormatFloat(v, 'g', figures, bitSize), bitSize); err != nil {
			return nil, fmt.Errorf("rounding %v: %w", v, err)
		}
	}
	return json.Marshal(rounded)
}

// bitSize of a float64.
const bitSize = 64

// Write writes the report as JSON.
func (r *Report) Write(file string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

// Read reads what Write wrote.
func Read(file string) (*Report, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("reading results: %s: %w", file, err)
	}
	if len(r.Series) == 0 {
		return nil, fmt.Errorf("reading results: %s: %w", file, errors.New("there are no series in it; is it a result of `switchyard bench`?"))
	}
	return &r, nil
}
