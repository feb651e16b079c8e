package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/bench/control"
)

// Usage is what a proxy's process takes of the machine.
type Usage struct {
	RSS, Peak float64       // bytes
	Maps      float64       // bytes of BPF maps that it holds
	CPU       time.Duration // of it and of what it started and has ended
}

// Usage reads what the process takes now.
func (p *Proxy) Usage() (Usage, error) {
	if p.process == nil {
		return Usage{}, errors.New(p.Name + " does not run")
	}
	pid := p.process.Cmd.Process.Pid
	used, err := control.Used(pid)
	if err != nil {
		return Usage{}, fmt.Errorf("reading what %s takes: %w", p.Name, err)
	}
	return Usage{RSS: used.Resident, Peak: used.Peak, CPU: used.CPU + used.Children, Maps: mapBytes(fmt.Sprintf("/proc/%d", pid))}, nil
}

// field is the number in the line of a file of /proc that starts so.
func field(text, name string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				n, _ := strconv.ParseFloat(words[0], 64) // 0: no number
				return n
			}
		}
	}
	return 0
}

// mapBytes adds up the memory of the BPF maps that a process holds.
func mapBytes(dir string) float64 {
	files, _ := filepath.Glob(filepath.Join(dir, "fdinfo", "*")) // the pattern is good
	var sum float64
	seen := map[float64]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		id := field(string(b), "map_id:")
		if id != 0 && !seen[id] {
			seen[id] = true
			sum += field(string(b), "memlock:")
		}
	}
	return sum
}

// Metrics is what a proxy's /metrics said.
type Metrics string

// Metrics asks the proxy.
func (p *Proxy) Metrics() (Metrics, error) {
	body, err := p.Node.Get(context.Background(), metricsAddr, "/metrics")
	if err != nil {
		return "", fmt.Errorf("asking %s for its metrics: %w", p.Name, err)
	}
	return Metrics(body), nil
}

// Sum adds up all series of a metric whose labels hold this text.
func (m Metrics) Sum(name, label string) float64 {
	var sum float64
	for line := range strings.Lines(string(m)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") || !strings.Contains(rest, label) {
			continue
		}
		words := strings.Fields(rest[strings.LastIndexByte(rest, '}')+1:])
		if len(words) > 0 {
			n, _ := strconv.ParseFloat(words[0], 64)
			sum += n
		}
	}
	return sum
}
