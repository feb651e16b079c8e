package costs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tally is what one change gave to the kernel, or to a program that does so.
type tally struct {
	messages, bytes float64 // by netlink
	maps            float64 // system calls that write BPF maps
	restored        float64 // bytes that iptables-restore read
}

// calls counts what each kind of change gives to the kernel.
func (c *counted) calls() error {
	for _, what := range changes() {
		var got tally
		err := trace(c.agent.Cmd.Process.Pid, &got, func() error {
			return c.agent.Call("Costs.Change", what, &struct{}{})
		})
		if err != nil {
			return err
		}
		if err := c.agent.Call("Costs.Back", struct{}{}, &struct{}{}); err != nil {
			return err
		}
		switch c.name {
		case nameIPTables:
			c.add(Cost{What: "input of iptables-restore for " + string(what), Unit: "bytes", Value: got.restored})
		case nameEBPF:
			c.add(Cost{What: "writes of BPF maps for " + string(what), Unit: "system calls", Value: got.maps})
		case nameNFTables:
			c.add(Cost{What: "netlink messages for " + string(what), Unit: "messages", Value: got.messages},
				Cost{What: "size of netlink messages for " + string(what), Unit: "bytes", Value: got.bytes})
		}
	}
	return nil
}

// trace counts the calls that a process and what it starts make during do. The
// kernels of some machines have no nlmon device, so it asks strace.
func trace(pid int, got *tally, do func() error) (err error) {
	dir, err := os.MkdirTemp("", "switchyard-costs-")
	if err != nil {
		return fmt.Errorf("making a directory for strace: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// -ff: a file for each thread, in which every call is one line.
	cmd := exec.Command("strace", "-ff", "-v", "-e", "trace=sendmsg,sendto,read,bpf", "-o", filepath.Join(dir, "calls"), "-p", strconv.Itoa(pid))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("running strace: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running strace: %w", err)
	}
	attached, ended := make(chan struct{}), make(chan string, 1)
	go watchStrace(stderr, attached, ended)
	select {
	case <-attached:
	case said := <-ended:
		return fmt.Errorf("tracing process %d: strace says: %s: %w", pid, said, cmd.Wait())
	}
	doErr := do()
	_ = cmd.Process.Signal(syscall.SIGINT) // it detaches and ends
	<-ended
	_ = cmd.Wait() // that it was interrupted
	if doErr != nil {
		return doErr
	}
	return got.readAll(dir)
}

// attachTime is how long strace takes at most, after it has said so, to attach to
// all threads.
const attachTime = 100 * time.Millisecond

// watchStrace closes attached once strace sees all threads, and sends what it said
// when it ends.
func watchStrace(r io.Reader, attached chan<- struct{}, ended chan<- string) {
	var said strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if said.Len() == 0 && strings.Contains(lines.Text(), " attached") {
			time.AfterFunc(attachTime, func() { close(attached) })
		}
		said.WriteString(lines.Text() + "; ")
	}
	ended <- said.String()
}

// readAll adds up the files that strace wrote.
func (t *tally) readAll(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return fmt.Errorf("finding what strace wrote: %w", err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("reading what strace wrote: %w", err)
		}
		if err := errors.Join(t.read(f), f.Close()); err != nil {
			return fmt.Errorf("reading what strace wrote: %w", err)
		}
	}
	return nil
}

// read adds up the calls of one thread.
func (t *tally) read(r io.Reader) error {
	returned := regexp.MustCompile(` = (\d+)$`)
	lines := bufio.NewReader(r) // of any length
	for {
		line, err := lines.ReadString('\n')
		line = strings.TrimSuffix(line, "\n")
		var n float64 // what failed counts nothing
		if m := returned.FindStringSubmatch(line); m != nil {
			n, _ = strconv.ParseFloat(m[1], 64)
		}
		switch {
		case strings.HasPrefix(line, "sendmsg("), strings.HasPrefix(line, "sendto("):
			if messages := strings.Count(line, "nlmsg_len="); messages > 0 {
				t.messages += float64(messages)
				t.bytes += n
			}
		case strings.HasPrefix(line, "read(0, "): // our own processes read nothing there
			t.restored += n
		case strings.HasPrefix(line, "bpf(BPF_MAP_UPDATE"), strings.HasPrefix(line, "bpf(BPF_MAP_DELETE"):
			t.maps++
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
