package costs

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// memory counts what an endpoint takes in memory, with many Services: the rest is
// little then.
func (c *counted) memory() error {
	if c.services != many {
		return nil
	}
	per := func(what string, bytes int64) Cost {
		return Cost{What: what, Unit: "bytes", Value: perEndpoint(bytes, c.filled.Listed)}
	}
	c.add(per("heap for each endpoint", c.filled.Heap))
	if c.name == nameEBPF {
		c.add(per("BPF maps for each endpoint", c.filled.Maps))
	}
	return nil
}

// perEndpoint divides bytes, to a tenth.
func perEndpoint(bytes int64, endpoints int) float64 {
	return math.Round(10*float64(bytes)/float64(endpoints)) / 10
}

// memory returns the live heap of this process and the memory of its BPF maps.
func (a *agent) memory() (heap, maps int64, err error) {
	maps, err = mapMemory()
	return liveHeap(), maps, err
}

// liveHeap returns the bytes that are in use after everything else is collected.
func liveHeap() int64 {
	var m runtime.MemStats
	for range 3 { // what has a finalizer or is pooled goes in a later round
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// mapMemory returns the bytes of the BPF maps that this process holds.
func mapMemory() (int64, error) {
	var sum int64
	seen := map[string]bool{} // a map may be open twice
	err := eachFD(func(info map[string]string) error {
		if id, ok := info["map_id"]; !ok || seen[id] {
			return nil
		}
		seen[info["map_id"]] = true
		n, err := strconv.ParseInt(info["memlock"], 10, 64)
		sum += n
		return err
	})
	return sum, err
}

// eachFD calls do with what the kernel says of each open file of this process.
func eachFD(do func(info map[string]string) error) error {
	const dir = "/proc/self/fdinfo"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("listing open files: %w", err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) { // the directory itself was open
			continue
		}
		if err != nil {
			return fmt.Errorf("reading about an open file: %w", err)
		}
		info := map[string]string{}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			k, v, _ := strings.Cut(lines.Text(), ":")
			info[k] = strings.TrimSpace(v)
		}
		if err := errors.Join(do(info), f.Close()); err != nil {
			return fmt.Errorf("reading about open file %s: %w", e.Name(), err)
		}
	}
	return nil
}
