package iptables

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

const (
	// pollPause is between two looks at the tables of legacy iptables.
	pollPause = 2 * time.Second
	// pollMost is how long one look may take.
	pollMost = 10 * time.Second
)

// poller looks at the tables of legacy iptables every now and then. Their size
// is one system call. If it changed, the rules that lead to our chains are looked
// for, because most changes are of others' rules.
type poller struct {
	watch  *watch
	halves []*half

	mu    sync.Mutex        // held while we write or look
	sizes map[string]uint32 // by family and table, as last seen
}

func newPoller(w *watch, halves []*half) *poller {
	return &poller{watch: w, halves: halves, sizes: map[string]uint32{}}
}

// pause keeps the poller from looking until resume, which notes what we wrote.
func (p *poller) pause() (resume func()) {
	p.mu.Lock()
	return func() {
		defer p.mu.Unlock()
		for _, h := range p.halves {
			for _, table := range []string{tableNAT, tableFilter} {
				if size, err := legacySize(h.family, table); err == nil {
					p.sizes[sizeKey(h, table)] = size
				}
			}
		}
	}
}

func sizeKey(h *half, table string) string { return h.family.String() + table }

func (p *poller) run() {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		select {
		case <-p.watch.stop:
			return
		case <-tick.C:
		}
		for _, h := range p.halves {
			p.look(h)
		}
	}
}

// look compares the tables of a family with what was last seen.
func (p *poller) look(h *half) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, table := range []string{tableNAT, tableFilter} {
		size, err := legacySize(h.family, table)
		key := sizeKey(h, table)
		if err != nil || size == p.sizes[key] {
			continue
		}
		leads, err := h.commands.leadsToOurs(table)
		if err != nil { // another program holds the lock, say: look again
			p.watch.log.Debug("cannot look for the rules that lead to our chains", "table", table, "error", err)
			continue
		}
		p.sizes[key] = size
		if !leads && h.written.Load() {
			p.watch.disturb()
		}
	}
}

// leadsToOurs reports whether each rule of a table that leads from a built-in
// chain to one of ours is there.
func (c *commands) leadsToOurs(table string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pollMost)
	defer cancel()
	for _, j := range jumps() {
		if j.table != table {
			continue
		}
		out, err := exec.CommandContext(ctx, c.path, "-w", "1", "-t", table, "-S", j.from).CombinedOutput()
		if err != nil {
			return false, fmt.Errorf("listing chain %s of table %s: %w: %s", j.from, table, err, firstLines(out))
		}
		if !strings.Contains(string(out), "-j "+j.to) {
			return false, nil
		}
	}
	return true, nil
}

// legacyInfo is struct ipt_getinfo, which that of IPv6 equals.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// legacySize returns how many bytes the rules of a table have.
func legacySize(f dataplane.Family, table string) (uint32, error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if f == dataplane.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return 0, fmt.Errorf("opening a socket to ask for table %s: %w", table, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var info legacyInfo
	copy(info.name[:len(info.name)-1], table)
	length := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("asking for table %s: %w", table, errno)
	}
	return info.size, nil
}
