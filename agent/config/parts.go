package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
	"github.com/switchyard-io/switchyard/watcher/kube"
)

// Backend is the name of the kernel mechanism that is asked for. kube-proxy's
// mode is a backend's name; unsaid, the first that works here is taken.
func (c *Config) Backend() string {
	switch {
	case c.Switchyard.Backend != "":
		return c.Switchyard.Backend
	case c.KubeProxy.Mode != "":
		return string(c.KubeProxy.Mode)
	}
	return catalog.Auto
}

// block holds what kube-proxy has once for each mode.
type block struct {
	name                      string
	masqueradeAll             bool
	masqueradeBit             int32
	syncPeriod, minSyncPeriod time.Duration
	minSyncDefault            time.Duration
}

// block returns the one that counts: as in kube-proxy that of the mode, and
// that of iptables where the mode has none.
func (c *Config) block() block {
	t, n, v := &c.KubeProxy.IPTables, &c.KubeProxy.NFTables, &c.KubeProxy.IPVS
	b := block{string(modeIPTables), t.MasqueradeAll, *t.MasqueradeBit, t.SyncPeriod.Duration, t.MinSyncPeriod.Duration, time.Second}
	switch c.KubeProxy.Mode {
	case modeNFTables:
		b = block{string(modeNFTables), n.MasqueradeAll, *n.MasqueradeBit, n.SyncPeriod.Duration, n.MinSyncPeriod.Duration, time.Second}
	case modeIPVS: // its masquerading is in the block of iptables
		b.name, b.syncPeriod, b.minSyncPeriod, b.minSyncDefault = string(modeIPVS), v.SyncPeriod.Duration, v.MinSyncPeriod.Duration, 0
	}
	return b
}

// MinInterval is the least time between two Syncs that somebody chose; 0: nobody
// did. kube-proxy's minSyncPeriod is there to bound the cost of going through
// all rules; here a change costs what it touches, so that its default is not ours.
func (c *Config) MinInterval() time.Duration {
	b := c.block()
	switch own := c.Switchyard.MinSyncInterval.Duration; {
	case own > 0:
		return own
	case b.minSyncPeriod != b.minSyncDefault:
		return max(b.minSyncPeriod, time.Millisecond)
	}
	return 0
}

// Backends is what each backend alone is told.
func (c *Config) Backends() catalog.Options {
	s := &c.Switchyard
	return catalog.Options{
		EBPF: catalog.EBPFOptions{
			SocketLB:     c.socketLB(),
			CgroupRoot:   s.EBPF.CgroupRoot,
			PinDir:       s.EBPF.PinDir,
			MaxFrontends: s.EBPF.MaxFrontends,
			MaxEndpoints: s.EBPF.MaxEndpoints,
			MaxAffinity:  s.EBPF.MaxAffinity,
		},
		IPTables: catalog.IPTablesOptions{Mode: s.IPTables.Mode, LockDir: c.LockDir},
		IPVS:     c.ipvs(),
	}
}

// socketLB is whose sockets are translated; "": what the backend has as its default.
func (c *Config) socketLB() catalog.SocketLB {
	if c.Switchyard.SocketLB == "" && c.Switchyard.EBPF.SocketLB != nil && !*c.Switchyard.EBPF.SocketLB {
		return catalog.SocketLBOff
	}
	return catalog.SocketLB(c.Switchyard.SocketLB)
}

// ipvs is what the IPVS backend is told.
func (c *Config) ipvs() catalog.IPVSOptions {
	k := &c.KubeProxy.IPVS
	o := catalog.IPVSOptions{
		Scheduler:     k.Scheduler,
		StrictARP:     k.StrictARP,
		TCPTimeout:    k.TCPTimeout.Duration,
		TCPFinTimeout: k.TCPFinTimeout.Duration,
		UDPTimeout:    k.UDPTimeout.Duration,
		DrainTimeout:  c.Switchyard.IPVS.DrainTimeout.Duration,
	}
	for _, cidr := range k.ExcludeCIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil { // Validate tells of others
			o.ExcludeCIDRs = append(o.ExcludeCIDRs, p)
		}
	}
	return o
}

// BehindLimit is how long the kernel may lack something wanted before the agent
// is unhealthy: twice the sync period, as in kube-proxy.
func (c *Config) BehindLimit() time.Duration { return 2 * c.block().syncPeriod }

// Dataplane is what every backend is told.
func (c *Config) Dataplane(log *slog.Logger, families []dataplane.Family) dataplane.Config {
	return dataplane.Config{
		Log:                log,
		Families:           families,
		MasqueradeBit:      int(c.block().masqueradeBit),
		LocalhostNodePorts: *c.KubeProxy.IPTables.LocalhostNodePorts,
	}
}

// Conntrack is the settings of connection tracking.
func (c *Config) Conntrack() conntrack.Settings {
	k := &c.KubeProxy.Conntrack
	return conntrack.Settings{
		MaxPerCore:            int(*k.MaxPerCore),
		Min:                   int(*k.Min),
		TCPEstablishedTimeout: k.TCPEstablishedTimeout.Duration,
		TCPCloseWaitTimeout:   k.TCPCloseWaitTimeout.Duration,
		TCPBeLiberal:          k.TCPBeLiberal,
		UDPTimeout:            k.UDPTimeout.Duration,
		UDPStreamTimeout:      k.UDPStreamTimeout.Duration,
	}
}

// Watcher is what policy is told.
func (c *Config) Watcher(log *slog.Logger, families []dataplane.Family) (watcher.Options, error) {
	k := &c.KubeProxy
	name := k.HostnameOverride
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return watcher.Options{}, fmt.Errorf("finding this Node's name (--hostname-override gives it): %w", err)
		}
	}
	o := watcher.Options{
		Log:                log,
		NodeName:           strings.ToLower(name),
		Families:           families,
		DetectLocal:        watcher.DetectLocal{Mode: watcher.DetectLocalMode(k.DetectLocalMode)},
		NodePortAddresses:  k.NodePortAddresses,
		LocalhostNodePorts: *k.IPTables.LocalhostNodePorts,
		MasqueradeAll:      c.block().masqueradeAll,
		ExternalIPs:        c.Gate(gateExternalIPs),
	}
	if k.Mode == modeNFTables && len(k.NodePortAddresses) == 0 {
		o.NodePortAddresses = []string{"primary"} // that mode's default
	}
	if a, ok := facts.ParseAddr(k.BindAddress); ok {
		o.NodeIPs = []netip.Addr{a} // an unspecified one says nothing
	}
	switch o.DetectLocal.Mode {
	case watcher.BridgeInterface:
		o.DetectLocal.Interface = k.DetectLocal.BridgeInterface
	case watcher.InterfaceNamePrefix:
		o.DetectLocal.Interface = k.DetectLocal.InterfaceNamePrefix
	}
	o.DetectLocal.ClusterCIDRs, _ = parseClusterCIDR(k.ClusterCIDR) // validated
	return o, nil
}

// API is how to reach the API server.
func (c *Config) API(log *slog.Logger, node string) kube.Options {
	k := &c.KubeProxy.ClientConnection
	return kube.Options{
		Kubeconfig:         k.Kubeconfig,
		Master:             c.Master,
		Servers:            c.Switchyard.APIServers,
		NodeName:           node,
		Log:                log,
		AcceptContentTypes: k.AcceptContentTypes,
		ContentType:        k.ContentType,
		QPS:                k.QPS,
		Burst:              int(k.Burst),
	}
}

// Logger is the agent's log. level may be changed with SetVerbosity.
func (c *Config) Logger(w io.Writer, level *slog.LevelVar) *slog.Logger {
	c.SetVerbosity(level)
	opts := &slog.HandlerOptions{Level: level}
	if c.KubeProxy.Logging.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// SetVerbosity sets how much is logged: 4 and more is for developers.
func (c *Config) SetVerbosity(level *slog.LevelVar) {
	level.Set(LogLevel(int(c.KubeProxy.Logging.Verbosity)))
}

// LogLevel is what a verbosity of kube-proxy's means.
func LogLevel(verbosity int) slog.Level {
	if verbosity >= 4 {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// ProtectFromOOM sets how readily the kernel ends this process when memory runs
// out. As in kube-proxy it is no fault where that is not allowed.
func (c *Config) ProtectFromOOM(log *slog.Logger) {
	score := strconv.Itoa(int(*c.KubeProxy.OOMScoreAdj))
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0); err != nil {
		log.Info("oomScoreAdj cannot be set and stays as it is", "wanted", score, "error", err)
	}
}
