package netlab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Program is a program of any kind that runs on a host; what it writes is in a
// file.
type Program struct {
	Cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// StartProgram starts a command on the host and has both of its streams written
// to the file log.
func (h *Host) StartProgram(cmd *exec.Cmd, log string) (*Program, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("making the log of %s on %s: %w", cmd.Path, h.Name, err)
	}
	defer func() { _ = f.Close() }() // the program has its own
	cmd.Stdout, cmd.Stderr = f, f
	// A process group of its own: Ctrl-C is for the caller, which ends it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	p := &Program{Cmd: cmd, log: log, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // its state is in Cmd.ProcessState
		close(p.exited)
	}()
	return p, nil
}

// Exited is closed when the program has ended.
func (p *Program) Exited() <-chan struct{} { return p.exited }

// Terminate asks the program to end, if it has not.
func (p *Program) Terminate() { _ = p.Cmd.Process.Signal(syscall.SIGTERM) }

// End waits until the program has ended. When ctx is done it is killed, and what
// it started with it: an iptables-restore may take minutes.
func (p *Program) End(ctx context.Context) {
	select {
	case <-p.exited:
	case <-ctx.Done():
		_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
		<-p.exited
	}
}

// Stop asks the program to end and kills it where it has not ended in time.
func (p *Program) Stop(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.Terminate()
	p.End(ctx)
}

// LastLines are the last n lines that the program wrote.
func (p *Program) LastLines(n int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Get asks an HTTP server for a page, from the host itself. Other answers than
// 200 are errors.
func (h *Host) Get(ctx context.Context, addr, path string) (body []byte, err error) {
	const limit, most = 10 * time.Second, 4096 // for all of it; bytes of a page in an error
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = h.Do(func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		end, _ := ctx.Deadline()
		_ = conn.SetDeadline(end)
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, addr); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if body, err = io.ReadAll(resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s says %s: %s", path, resp.Status, strings.TrimSpace(string(body[:min(len(body), most)])))
		}
		return nil
	})
	return body, err
}
