package kube

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// answer is what an answer says of the server that gives it.
type answer int

const (
	well   answer = iota
	sick          // its etcd is away, it is overloaded, it cannot verify anyone …
	silent        // it accepted the request, and that was all
)

// patience waits for the beginning of an answer for a limited time, and has
// servers judge the server by it.
type patience struct {
	next    http.RoundTripper
	servers *servers // nil: there is one server
	longest time.Duration
}

// RoundTrip implements http.RoundTripper.
func (p *patience) RoundTrip(r *http.Request) (*http.Response, error) {
	judge := p.judge()
	ctx, cancel := context.WithCancel(r.Context())
	late := time.AfterFunc(p.longest, cancel)
	resp, err := p.next.RoundTrip(r.WithContext(ctx))
	inTime := late.Stop()
	if err != nil {
		cancel()
		if !inTime && r.Context().Err() == nil {
			judge(silent)
			return nil, fmt.Errorf("no answer within %v: %w", p.longest, err)
		}
		if r.Context().Err() == nil {
			judge(sick)
		}
		return nil, err
	}
	if r.Method == http.MethodGet { // Events have quotas and webhooks of their own
		judge(judged(resp.StatusCode))
	}
	resp.Body = &body{resp.Body, cancel}
	return resp, nil
}

// WrappedRoundTripper lets client-go find the transport.
func (p *patience) WrappedRoundTripper() http.RoundTripper { return p.next }

// judge returns what has servers judge the server of a request that begins now.
func (p *patience) judge() func(answer) {
	if p.servers == nil {
		return func(answer) {}
	}
	turn := p.servers.turn()
	return func(a answer) { p.servers.answered(a, turn) }
}

// judged takes a refusal for an answer of a server that is well, if another one
// would refuse too.
func judged(status int) answer {
	switch {
	case status >= http.StatusInternalServerError,
		status == http.StatusUnauthorized, status == http.StatusRequestTimeout, status == http.StatusTooManyRequests:
		return sick
	}
	return well
}

// body ends the request's context when it has been read.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}
