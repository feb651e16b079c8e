package kube

import (
	"io"
	"net/http"
	"path"
	"sync"
	"sync/atomic"
	"time"
)

// Listing says how the first list of a resource went.
type Listing struct {
	Ended  time.Time     // when all objects were facts; zero: not yet
	Waited time.Duration // how long nothing came from the API server until then
}

// listing measures the first list of a resource, streamed or not.
type listing struct {
	ended atomic.Bool // so that reads of the watch that follows cost nothing

	mu     sync.Mutex
	first  Listing
	failed time.Time // when the last request failed, after which client-go pauses
}

// listings measures those of several resources; a nil one is not measured.
type listings map[string]*listing

// Listings returns how the first lists of Services and EndpointSlices went.
func (s *Source) Listings() []Listing {
	var all []Listing
	for _, l := range s.listings {
		l.mu.Lock()
		all = append(all, l.first)
		l.mu.Unlock()
	}
	return all
}

// waited notes a time in which nothing came.
func (l *listing) waited(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended.Load() {
		l.first.Waited += time.Since(since)
	}
}

// begin returns when the wait for an answer began: where the request before this
// one failed, with that.
func (l *listing) begin() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	failed := l.failed
	l.failed = time.Time{}
	if failed.IsZero() {
		return time.Now()
	}
	return failed
}

func (l *listing) fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = time.Now()
}

// end notes that the list is complete.
func (l *listing) end() {
	if l == nil || l.ended.Swap(true) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first.Ended = time.Now()
}

// listingTransport has listings measure requests.
type listingTransport struct {
	http.RoundTripper
	listings listings
}

// RoundTrip implements http.RoundTripper.
func (t *listingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	l := t.listings[path.Base(r.URL.Path)]
	if l == nil || l.ended.Load() {
		return t.RoundTripper.RoundTrip(r)
	}
	begin := l.begin()
	resp, err := t.RoundTripper.RoundTrip(r)
	l.waited(begin)
	if err != nil || resp.StatusCode >= http.StatusBadRequest {
		l.fail()
	}
	if err == nil {
		resp.Body = &listingBody{resp.Body, l}
	}
	return resp, err
}

// WrappedRoundTripper lets client-go find the transport.
func (t *listingTransport) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

// listingBody has a listing measure the reads of an answer.
type listingBody struct {
	io.ReadCloser
	listing *listing
}

// Read implements io.Reader.
func (b *listingBody) Read(p []byte) (int, error) {
	if b.listing.ended.Load() {
		return b.ReadCloser.Read(p)
	}
	begin := time.Now()
	n, err := b.ReadCloser.Read(p)
	b.listing.waited(begin)
	return n, err
}
