package conntrack

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// mostEntries caps what MaxPerCore asks for: more than 2^20 entries is memory
// that few nodes mean to give. Min may ask for more.
const mostEntries = 1 << 20

// Settings are the sysctls of connection tracking, as in kube-proxy's
// configuration. The kernel counts whole seconds;
// a part of one counts as one.
type Settings struct {
	// MaxPerCore is how many entries the table takes per CPU of the machine; 0:
	// the table's size stays as it is.
	MaxPerCore int
	// Min is how many entries the table takes at least, whatever MaxPerCore asks
	// for, unless that is 0.
	Min int
	// How long the kernel keeps an entry without packets; 0: as it is.
	TCPEstablishedTimeout time.Duration
	TCPCloseWaitTimeout   time.Duration
	UDPTimeout            time.Duration
	UDPStreamTimeout      time.Duration
	// TCPBeLiberal takes packets outside of the TCP window for valid. false: the
	// kernel's setting stays as it is.
	TCPBeLiberal bool
}

// DefaultSettings are kube-proxy's.
func DefaultSettings() Settings {
	return Settings{
		MaxPerCore:            32768,
		Min:                   131072,
		TCPEstablishedTimeout: 24 * time.Hour,
		TCPCloseWaitTimeout:   time.Hour,
	}
}

// Tune sets the sysctls of connection tracking (KUBE-PROXY §1.18), each on its
// own: one that cannot be set is a logged warning, and what is right already is
// not written. The table's size is only raised. kube-proxy gives up where one
// fails, which keeps it out of containers whose /proc is read-only.
//
// It reports false where the kernel has no conntrack yet: its module comes with the
// first rule that needs it, ours or a CNI's, and forgets what nobody could set.
func Tune(log *slog.Logger, s Settings) bool {
	return kernel{proc: sysctl.Proc, module: sysctl.Module, cpus: onlineCPUs}.tune(log, s)
}

// TuneLater waits until the kernel has conntrack, and sets what settings then says.
func TuneLater(ctx context.Context, log *slog.Logger, settings func() Settings) {
	kernel{proc: sysctl.Proc, module: sysctl.Module, cpus: onlineCPUs}.tuneLater(ctx, log, settings, tunePause)
}

// tunePause is how often TuneLater looks.
const tunePause = 5 * time.Second

func (k kernel) tuneLater(ctx context.Context, log *slog.Logger, settings func() Settings, pause time.Duration) {
	log.Info("the kernel has no connection tracking yet; its settings follow when it has")
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if k.tune(log, settings()) {
			log.Info("connection tracking has come; its settings are in force")
			return
		}
	}
}

// present reports whether the kernel has conntrack.
func (k kernel) present() bool {
	_, err := k.proc.Get("net/netfilter/nf_conntrack_max")
	return !errors.Is(err, fs.ErrNotExist)
}

// kernel is where Tune reads and writes.
type kernel struct {
	proc, module sysctl.Tree
	cpus         func() int
}

func (k kernel) tune(log *slog.Logger, s Settings) bool {
	if !k.present() {
		return false
	}
	try := func(err error) {
		if err != nil {
			log.Warn("cannot set a conntrack setting; leaving it as it is", "error", err)
		}
	}
	if size := s.tableSize(k.cpus()); size > 0 {
		try(k.proc.Raise("net/netfilter/nf_conntrack_max", size))
		// Four entries share a hash bucket, as the kernel has it by default.
		err := k.module.Raise("nf_conntrack/parameters/hashsize", size/4)
		if err != nil { // a container's /sys is read-only
			err = k.proc.Raise("net/netfilter/nf_conntrack_buckets", size/4)
		}
		try(err)
	}
	for _, t := range []struct {
		name  string
		value time.Duration
	}{
		{"tcp_timeout_established", s.TCPEstablishedTimeout},
		{"tcp_timeout_close_wait", s.TCPCloseWaitTimeout},
		{"udp_timeout", s.UDPTimeout},
		{"udp_timeout_stream", s.UDPStreamTimeout},
	} {
		if t.value > 0 {
			try(k.proc.SetInt("net/netfilter/nf_conntrack_"+t.name, int((t.value+time.Second-1)/time.Second)))
		}
	}
	if s.TCPBeLiberal {
		try(k.proc.SetInt("net/netfilter/nf_conntrack_tcp_be_liberal", 1))
	}
	return true
}

// tableSize is the least number of entries that the table must take; 0: any.
// kube-proxy lets the cap win over a larger Min (KUBE-PROXY §6.12), here Min wins.
func (s Settings) tableSize(cpus int) int {
	if s.MaxPerCore <= 0 {
		return 0
	}
	return max(min(s.MaxPerCore*cpus, mostEntries), s.Min)
}

// onlineCPUs counts the machine's CPUs, as the table is the machine's. What the
// Go runtime counts are those that this process may use.
func onlineCPUs() int {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return runtime.NumCPU()
	}
	if n, ok := countCPUs(strings.TrimSpace(string(b))); ok {
		return n
	}
	return runtime.NumCPU()
}

// countCPUs counts a list such as "0-3,7".
func countCPUs(list string) (n int, ok bool) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA != nil || errB != nil || b < a {
			return 0, false
		}
		n += b - a + 1
	}
	return n, n > 0
}
