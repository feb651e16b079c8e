package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Client asks the agent behind a socket. Each answer is given as it came and
// decoded.
type Client struct{ Socket string }

// Status asks how all stands.
func (c Client) Status(ctx context.Context) (Status, []byte, error) {
	return ask[Status](ctx, c, http.MethodGet, pathStatus, nil)
}

// Services asks which Services there are; empty words mean any.
func (c Client) Services(ctx context.Context, namespace, name string) (Services, []byte, error) {
	return ask[Services](ctx, c, http.MethodGet, pathServices, url.Values{"namespace": {namespace}, "name": {name}})
}

// Explain asks what becomes of connections to an address and port; from may be
// empty. kernel asks also what the kernel holds.
func (c Client) Explain(ctx context.Context, to, protocol, from string, kernel bool) (Explanation, []byte, error) {
	query := url.Values{"to": {to}, "protocol": {protocol}, "from": {from}, "kernel": {strconv.FormatBool(kernel)}}
	if _, err := parseQuestion(query); err != nil { // without an agent, too
		return Explanation{}, nil, err
	}
	return ask[Explanation](ctx, c, http.MethodGet, pathExplain, query)
}

// Verify has the kernel compared with what is wanted, and perhaps repaired.
func (c Client) Verify(ctx context.Context, repair bool) (Verification, []byte, error) {
	return ask[Verification](ctx, c, http.MethodPost, pathVerify, url.Values{"repair": {strconv.FormatBool(repair)}})
}

func ask[T any](ctx context.Context, c Client, method, path string, query url.Values) (answer T, body []byte, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path+"?"+query.Encode(), nil)
	if err != nil {
		return answer, nil, fmt.Errorf("making a request for the agent: %w", err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer, nil, c.unanswered(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return answer, nil, fmt.Errorf("reading the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var f fault
		if json.Unmarshal(body, &f) != nil || f.Error == "" {
			f.Error = fmt.Sprintf("the agent answers %s: %s", resp.Status, strings.TrimSpace(string(body)))
		}
		return answer, nil, errors.New(f.Error)
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, nil, fmt.Errorf("reading the agent's answer: %w", err)
	}
	return answer, body, nil
}

// unanswered says what to do where nobody answers.
func (c Client) unanswered(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("socket %s is for root only: try sudo", c.Socket)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("no agent answers on socket %s: start `switchyard run` on this node, "+
			"or give the --socket that it was started with", c.Socket)
	}
	return fmt.Errorf("asking the agent on socket %s: %w", c.Socket, err)
}
