package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A load balancer asks with one small request. Who does not is cut off.
const (
	readTimeout  = 5 * time.Second
	writeTimeout = 5 * time.Second
	idleTimeout  = 2 * time.Minute
	headerBytes  = 16 << 10
)

// check is one Service's health check in one family.
type check struct {
	service   serviceID
	ports     int    // how many of the Service's ports carry it
	port      uint16 // where it is asked
	endpoints atomic.Int64
}

// answer is kube-proxy's to any path and method, to the byte.
func (c *check) answer(w http.ResponseWriter, healthy bool) {
	endpoints := c.endpoints.Load()
	code := http.StatusServiceUnavailable
	if endpoints > 0 && healthy {
		code = http.StatusOK
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(endpoints, 10))
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n"+
		"\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
		c.service.namespace, c.service.name, endpoints, healthy)
}

// listener serves one check at one address.
type listener struct {
	check  *check
	socket net.Listener
	server *http.Server
}

func listenOn(addr netip.AddrPort, c *check, healthy func() bool) (*listener, error) {
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	lc := net.ListenConfig{Control: freeBind}
	l, err := lc.Listen(context.Background(), network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { c.answer(w, healthy()) }),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytes,
	}
	go func() { _ = srv.Serve(l) }() // returns when the server is closed
	return &listener{check: c, socket: l, server: srv}, nil
}

// close frees the address at once, also where the server has not begun yet.
func (l *listener) close() error {
	err := l.socket.Close()
	if e := l.server.Close(); err == nil && !errors.Is(e, net.ErrClosed) {
		err = e
	}
	return err
}

// freeBind lets a socket listen on an address that the node does not have just
// now: one that IPv6 is still checking for duplicates, or that comes back.
func freeBind(network, _ string, conn syscall.RawConn) error {
	level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	var optErr error
	err := conn.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, optErr)
}
