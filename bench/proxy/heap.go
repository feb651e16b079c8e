package proxy

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/google/pprof/profile"
)

// Heap is the live memory of Switchyard's process by part, in bytes. It is
// estimated from samples, one for each 512 KiB.
type Heap struct {
	Facts    float64 // what the API server said
	Snapshot float64 // what the backend is to make of it
	Backend  float64 // what it keeps to find what changed
	Others   float64
}

// Sum is all of it.
func (h Heap) Sum() float64 { return h.Facts + h.Snapshot + h.Backend + h.Others }

// Heap asks the process, which collects its garbage first.
func (p *Proxy) Heap() (Heap, error) {
	body, err := p.Node.Get(context.Background(), metricsAddr, "/debug/pprof/heap?gc=1")
	if err != nil {
		return Heap{}, fmt.Errorf("asking %s for its heap: %w", p.Name, err)
	}
	all, err := profile.Parse(bytes.NewReader(body))
	if err != nil {
		return Heap{}, fmt.Errorf("reading the heap of %s: %w", p.Name, err)
	}
	return heapOf(all), nil
}

// heapOf adds up samples by who allocated them.
func heapOf(p *profile.Profile) Heap {
	var h Heap
	value := 0
	for i, t := range p.SampleType {
		if t.Type == "inuse_space" {
			value = i
		}
	}
	for _, s := range p.Sample {
		*h.of(s) += float64(s.Value[value])
	}
	return h
}

// of is the part that an allocation belongs to: that of the innermost function
// which has one.
func (h *Heap) of(s *profile.Sample) *float64 {
	const module = "github.com/switchyard-io/switchyard/"
	parts := []struct {
		prefix string
		part   *float64
	}{
		{module + "watcher/policy.", &h.Snapshot},
		{module + "watcher", &h.Facts},
		{"k8s.io/", &h.Facts},
		{module + "dataplane.", &h.Snapshot},
		{module + "dataplane/", &h.Backend},
	}
	for _, l := range s.Location {
		for _, line := range l.Line {
			for _, p := range parts {
				if strings.HasPrefix(line.Function.Name, p.prefix) {
					return p.part
				}
			}
		}
	}
	return &h.Others
}
