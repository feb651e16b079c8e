// Package load makes a steady stream of requests and counts what fails.
//
// It is open-loop: a request starts when it is due, whether or not earlier ones
// have been answered, so that a stall shows as many slow or failed requests and
// not as a pause.
package load

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Target is where the requests of one stream go, and how.
type Target struct {
	Name string         `json:"name"`
	Addr netip.AddrPort `json:"addr"`
	// Held keeps one connection for all requests; otherwise each has its own.
	Held bool `json:"held,omitempty"`
	// UDP sends datagrams instead of TCP connections, each from its own port.
	UDP bool `json:"udp,omitempty"`
	// CA is a PEM file: the server speaks TLS, with a certificate that this
	// authority signed for the API server. Empty: no TLS.
	CA string `json:"ca,omitempty"`
	// Path that is asked for, and Host as which; "": the server's name.
	Path string `json:"path,omitempty"`
	Host string `json:"host,omitempty"`
	// Rate is in requests per second, 1 to MaxRate.
	Rate int `json:"rate"`
	// Count ends the stream after so many requests; 0: when it is stopped.
	Count int `json:"count,omitempty"`
}

func (t Target) network() string {
	if t.UDP {
		return "udp"
	}
	return "tcp"
}

const (
	// MaxRate bounds a stream, and maxWaiting its unanswered requests.
	MaxRate    = 1000
	maxWaiting = 500
	// maxTime bounds a stream that nobody stops.
	maxTime = 10 * time.Minute
	// timeout of one request. A lost SYN is sent again after 1 and 3 s, so that
	// one loss makes a request slow, and a connection that leads nowhere fails.
	timeout = 5 * time.Second
	// udpTimeout is that of a datagram on a socket that sends others after it.
	udpTimeout = time.Second
	// slow is longer than any healthy answer and shorter than a repeated SYN.
	slow = 900 * time.Millisecond
	// Test servers answer path and datagram with the name of their pod. The API
	// server answers apiPath to anyone.
	path     = "/hostname"
	datagram = "hostname"
	apiPath  = "/readyz"
	// ClientIP is a path that is answered with the client's address.
	ClientIP = "/clientip"
	apiName  = "kubernetes.default.svc"
)

// Report is what became of a stream.
type Report struct {
	Target   Target         `json:"target"`
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Slow     int            `json:"slow"` // answered, after 0.9 s or more
	Slowest  time.Duration  `json:"slowest"`
	Answers  map[string]int `json:"answers"` // requests answered, by server
	// FirstError is the first failure's cause, FirstErrorAt when its request began.
	FirstError   string    `json:"firstError,omitempty"`
	FirstErrorAt time.Time `json:"firstErrorAt,omitzero"`
}

// outcome is what became of one request.
type outcome struct {
	began  time.Time
	took   time.Duration
	server string
	err    error
}

func (r *Report) add(o outcome) {
	r.Requests++
	r.Slowest = max(r.Slowest, o.took)
	if o.err == nil {
		r.Answers[o.server]++
		if o.took >= slow {
			r.Slow++
		}
		return
	}
	r.Failed++
	if r.FirstErrorAt.IsZero() || o.began.Before(r.FirstErrorAt) {
		r.FirstError, r.FirstErrorAt = o.err.Error(), o.began
	}
}

// Run sends requests to t until ctx ends or t.Count is reached, waits for the
// answers that are due, and reports. The end of ctx fails no request.
func Run(ctx context.Context, t Target) Report {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	r := Report{Target: t, Answers: map[string]int{}}
	if t.Rate < 1 || t.Rate > MaxRate {
		r.add(outcome{began: time.Now(), err: fmt.Errorf("rate %d is not from 1 to %d", t.Rate, MaxRate)})
		return r
	}
	outcomes := make(chan outcome, maxWaiting)
	go func() {
		defer close(outcomes)
		if t.Held {
			sendHeld(ctx, t, outcomes)
		} else {
			sendEach(ctx, t, outcomes)
		}
	}()
	for o := range outcomes {
		r.add(o)
	}
	return r
}

// due calls do at t's rate until ctx ends, t.Count is reached or do says false.
func due(ctx context.Context, t Target, do func() bool) {
	tick := time.NewTicker(time.Second / time.Duration(t.Rate))
	defer tick.Stop()
	for n := 0; t.Count == 0 || n < t.Count; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !do() {
				return
			}
		}
	}
}

func sendEach(ctx context.Context, t Target, outcomes chan<- outcome) {
	var waiting sync.WaitGroup
	room := make(chan struct{}, maxWaiting)
	due(ctx, t, func() bool {
		room <- struct{}{}
		waiting.Go(func() {
			defer func() { <-room }()
			outcomes <- measure(func() (string, error) { return ask(t) })
		})
		return true
	})
	waiting.Wait()
}

// sendHeld fails once and for all when its TCP connection breaks. Of UDP each
// datagram without an answer fails.
func sendHeld(ctx context.Context, t Target, outcomes chan<- outcome) {
	var conn net.Conn
	var in *bufio.Reader
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	due(ctx, t, func() bool {
		o := measure(func() (string, error) {
			if conn == nil {
				c, err := net.DialTimeout(t.network(), t.Addr.String(), timeout)
				if err != nil {
					return "", err
				}
				conn, in = c, bufio.NewReader(c)
			}
			if t.UDP {
				return askOver(conn, udpTimeout)
			}
			return exchange(conn, in, t, path, "")
		})
		outcomes <- o
		return o.err == nil || t.UDP
	})
}

func measure(do func() (string, error)) outcome {
	o := outcome{began: time.Now()}
	o.server, o.err = do()
	o.took = time.Since(o.began)
	return o
}

// ask makes one request from a port of its own.
func ask(t Target) (string, error) {
	if t.UDP {
		return askUDP(t.Addr)
	}
	conn, err := net.DialTimeout("tcp", t.Addr.String(), timeout)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	url := cmp.Or(t.Path, path)
	if t.CA != "" {
		url = apiPath
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return "", err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		conn = tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: apiName, MinVersion: tls.VersionTLS13})
	}
	answer, err := exchange(conn, bufio.NewReader(conn), t, url, "Connection: close\r\n")
	if client, e := netip.ParseAddrPort(answer); e == nil && url == ClientIP {
		answer = client.Addr().String() // each request has another port
	}
	return answer, err
}

// askUDP does not repeat a datagram: a lost one is a failed request.
func askUDP(addr netip.AddrPort) (string, error) {
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return askOver(conn, timeout)
}

// askOver sends a datagram and waits for the answer.
func askOver(conn net.Conn, limit time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(datagram)); err != nil {
		return "", err
	}
	answer := make([]byte, longest)
	n, err := conn.Read(answer)
	return strings.TrimSpace(string(answer[:n])), err
}

// longest answer in bytes: a host name.
const longest = 253

// exchange sends a request and reads the answer.
func exchange(conn net.Conn, in *bufio.Reader, t Target, url, header string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", url, cmp.Or(t.Host, "lab"), header); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, longest))
	if err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New("answered " + resp.Status)
	}
	return strings.TrimSpace(string(body)), nil
}
