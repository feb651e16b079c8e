package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/cgroup"
	"github.com/switchyard-io/switchyard/lab/e2e/internal/network"
)

// Verb is the argument with which this program becomes a client: see Serve.
const Verb = "load"

// Place is where a client runs.
type Place struct {
	Name      string
	Namespace string   // the file of its network namespace
	Cgroup    string   // the cgroup v2 folder; cgroup hooks tell nodes apart by it
	Cgroups1  []string // cgroup v1 folders, for its share of the processors
}

// Client is a process in another place that sends requests.
type Client struct {
	place Place
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   bytes.Buffer
	stop  sync.Once
}

// Start runs this program's verb "load" at place, with one stream per target.
// It ends with this process, should that come first.
func Start(place Place, targets []Target) (*Client, error) {
	group, err := os.Open(place.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("starting a client %s: %w", place.Name, err)
	}
	defer func() { _ = group.Close() }()
	cmd := exec.Command("/proc/self/exe", Verb)
	cmd.Stderr = os.Stderr
	// In a session of its own, Ctrl-C reaches it through its standard input only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	c := &Client{place: place, cmd: cmd}
	cmd.Stdout = &c.out
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("starting a client %s: %w", place.Name, err)
	}
	if err := network.Do(place.Namespace, cmd.Start); err != nil {
		return nil, fmt.Errorf("starting a client %s: %w", place.Name, err)
	}
	err = errors.Join(cgroup.Join(cmd.Process.Pid, place.Cgroups1...), json.NewEncoder(c.stdin).Encode(targets))
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("starting a client %s: %w", place.Name, err)
	}
	return c, nil
}

// Stop ends the streams that have no end of their own.
func (c *Client) Stop() { c.stop.Do(func() { _ = c.stdin.Close() }) }

// Wait gives the reports once all streams have ended.
func (c *Client) Wait() ([]Report, error) {
	err := c.cmd.Wait()
	c.Stop()
	if err != nil {
		return nil, fmt.Errorf("client %s: %w", c.place.Name, err)
	}
	var reports []Report
	if err := json.Unmarshal(c.out.Bytes(), &reports); err != nil {
		return nil, fmt.Errorf("client %s: read its report: %w", c.place.Name, err)
	}
	for i := range reports {
		reports[i].Target.Name = c.place.Name + " to " + reports[i].Target.Name
	}
	return reports, nil
}

// Serve is the client's side: it reads targets from in, sends until in ends, and
// writes the reports to out.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	input := json.NewDecoder(in)
	var targets []Target
	if err := input.Decode(&targets); err != nil {
		return fmt.Errorf("reading the targets: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, io.MultiReader(input.Buffered(), in))
		cancel()
	}()
	reports := make([]Report, len(targets))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() { reports[i] = Run(ctx, t) })
	}
	all.Wait()
	if err := json.NewEncoder(out).Encode(reports); err != nil {
		return fmt.Errorf("writing the reports: %w", err)
	}
	return nil
}
