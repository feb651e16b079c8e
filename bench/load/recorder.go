package load

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// recorder sums up requests; several workers may share one.
type recorder struct {
	begin    time.Duration // of what counts, on the clock that Now reads
	mu       sync.Mutex
	times    *hdrhistogram.Histogram
	requests int
	failed   int
	err      error
}

func (r *recorder) answered(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	_ = r.times.RecordValue(min(int64(took), int64(time.Minute))) // within its bounds
}

func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	if r.err == nil {
		r.err = err
	}
}

func (r *recorder) outcome(took time.Duration) *Outcome {
	o := &Outcome{Requests: r.requests, Failed: r.failed, Took: took, Times: r.times.Export()}
	if r.err != nil {
		o.Error = r.err.Error()
	}
	return o
}
