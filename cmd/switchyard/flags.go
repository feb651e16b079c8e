package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/conntrack"
	"github.com/switchyard-io/switchyard/dataplane/ebpf"
	"github.com/switchyard-io/switchyard/dataplane/iptables"
	"github.com/switchyard-io/switchyard/watcher"
)

// runFlags are the flags of `switchyard run`. Those that kube-proxy has too
// have its name, its meaning and its default.
type runFlags struct {
	backend     backendFlags
	minInterval time.Duration
	audit       time.Duration

	kubeconfig, master, manifests, hostname string

	detectLocalMode, clusterCIDR, bridge, prefix string
	nodePortAddresses                            []string
	masqueradeAll, localhostNodePorts            bool

	healthz, metrics string
	hardFail         bool
	socket           string

	conntrack conntrack.Settings
	log       logFlags
}

// backendFlags choose and tell a backend; cleanup takes them too.
type backendFlags struct {
	name          string
	ebpf          ebpf.Options
	iptablesMode  string
	masqueradeBit int
}

type logFlags struct {
	format string
	level  int
}

func (f *runFlags) add(fs *pflag.FlagSet) {
	fs.SortFlags = false
	f.backend.add(fs)
	fs.DurationVar(&f.minInterval, "min-sync-interval", 20*time.Millisecond, "least time between two Syncs of the kernel; what changes meanwhile is one Sync")
	fs.DurationVar(&f.audit, "verify-interval", time.Minute, "how often the kernel is compared with what is wanted, and repaired where it differs")

	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "file that tells how to reach the API server; default: as a pod in the cluster")
	fs.StringVar(&f.master, "master", "", "address of the API server, in place of the kubeconfig's")
	fs.StringVar(&f.manifests, "manifests", "", "directory with Services, EndpointSlices and Nodes as YAML or JSON, in place of an API server")
	fs.StringVar(&f.hostname, "hostname-override", "", "name of this Node; default: the hostname, in lower case")

	fs.StringVar(&f.detectLocalMode, "detect-local-mode", "ClusterCIDR", "how packets of this node's pods are recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	fs.StringVar(&f.clusterCIDR, "cluster-cidr", "", "address ranges of the pods, one for each family, for ClusterCIDR")
	fs.StringVar(&f.bridge, "pod-bridge-interface", "", "the pods' bridge, for BridgeInterface")
	fs.StringVar(&f.prefix, "pod-interface-name-prefix", "", "start of the pods' interface names, for InterfaceNamePrefix")
	fs.StringSliceVar(&f.nodePortAddresses, "nodeport-addresses", nil, "node addresses that take NodePorts: CIDRs, primary, localhost, all; default: all")
	fs.BoolVar(&f.masqueradeAll, "masquerade-all", false, "masquerade pods that use a ClusterIP too")
	fs.BoolVar(&f.localhostNodePorts, "iptables-localhost-nodeports", true, "let IPv4 NodePorts answer on 127.0.0.1")

	fs.StringVar(&f.healthz, "healthz-bind-address", "0.0.0.0:10256", "where /healthz, /livez and /readyz answer; empty: nowhere")
	fs.StringVar(&f.metrics, "metrics-bind-address", "127.0.0.1:10249", "where /metrics answers; empty: nowhere")
	fs.BoolVar(&f.hardFail, "bind-address-hard-fail", false, "end when one of these addresses cannot be had, instead of trying again")
	addSocketFlag(fs, &f.socket, "Unix socket where `status`, `get`, `explain` and `verify` are answered, for root alone; empty: nowhere")

	c := conntrack.DefaultSettings()
	fs.IntVar(&f.conntrack.MaxPerCore, "conntrack-max-per-core", c.MaxPerCore, "conntrack entries for each CPU; 0: leave the kernel's limit")
	fs.IntVar(&f.conntrack.Min, "conntrack-min", c.Min, "least number of conntrack entries, whatever the CPUs")
	fs.DurationVar(&f.conntrack.TCPEstablishedTimeout, "conntrack-tcp-timeout-established", c.TCPEstablishedTimeout, "idle time of established TCP connections; 0: leave the kernel's")
	fs.DurationVar(&f.conntrack.TCPCloseWaitTimeout, "conntrack-tcp-timeout-close-wait", c.TCPCloseWaitTimeout, "idle time of TCP connections in CLOSE_WAIT; 0: leave the kernel's")
	fs.BoolVar(&f.conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", c.TCPBeLiberal, "let TCP packets outside of the window pass")
	fs.DurationVar(&f.conntrack.UDPTimeout, "conntrack-udp-timeout", c.UDPTimeout, "idle time of one-way UDP flows; 0: leave the kernel's")
	fs.DurationVar(&f.conntrack.UDPStreamTimeout, "conntrack-udp-timeout-stream", c.UDPStreamTimeout, "idle time of two-way UDP flows; 0: leave the kernel's")
	f.log.add(fs)
}

func (b *backendFlags) add(fs *pflag.FlagSet) {
	names := strings.Join(catalog.Names(b.drivers()), ", ")
	fs.StringVar(&b.name, "backend", catalog.Auto, "the kernel mechanism: "+names)
	fs.StringVar(&b.name, "proxy-mode", catalog.Auto, "the same as --backend")
	e := ebpf.DefaultOptions()
	fs.BoolVar(&b.ebpf.SocketLB, "ebpf-socket-lb", e.SocketLB, "translate sockets of this node and its pods as they connect; without it, every packet")
	fs.StringVar(&b.ebpf.CgroupRoot, "ebpf-cgroup-root", e.CgroupRoot, "cgroup v2 directory of this node's processes and pods; default: where cgroup v2 is mounted")
	fs.StringVar(&b.ebpf.PinDir, "ebpf-pin-dir", e.PinDir, "directory of this agent on a bpf file system")
	fs.IntVar(&b.ebpf.MaxFrontends, "ebpf-max-frontends", e.MaxFrontends, "most addresses and ports of Services")
	fs.IntVar(&b.ebpf.MaxEndpoints, "ebpf-max-endpoints", e.MaxEndpoints, "most endpoints of all Service ports together, once for each pool")
	fs.IntVar(&b.ebpf.MaxSourceRanges, "ebpf-max-source-ranges", e.MaxSourceRanges, "most source ranges of load balancers")
	fs.IntVar(&b.ebpf.MaxAffinity, "ebpf-max-affinity", e.MaxAffinity, "most clients with session affinity, and most UDP flows of unconnected sockets")
	fs.IntVar(&b.ebpf.MaxConnections, "ebpf-max-connections", e.MaxConnections, "most connections that are translated packet by packet")
	fs.StringVar(&b.iptablesMode, "iptables-mode", "auto", "which iptables to call: auto, nft or legacy")
	fs.IntVar(&b.masqueradeBit, "iptables-masquerade-bit", 14, "bit of the packet mark that means masquerade, 0 to 30; the bit after it is used too")
}

// drivers are the backends that this binary has.
func (b *backendFlags) drivers() []dataplane.Driver {
	return catalog.Drivers(catalog.Options{EBPF: b.ebpf, IPTables: iptables.Options{Mode: b.iptablesMode}})
}

func (b *backendFlags) check() error {
	var errs []error
	if b.masqueradeBit < 0 || b.masqueradeBit > 30 {
		errs = append(errs, wrong("iptables-masquerade-bit", b.masqueradeBit, "it can be 0 to 30"))
	}
	if !slices.Contains([]string{"auto", "nft", "legacy"}, b.iptablesMode) {
		errs = append(errs, wrong("iptables-mode", b.iptablesMode, "it can be auto, nft or legacy"))
	}
	for _, size := range []struct {
		flag string
		n    int
	}{
		{"ebpf-max-frontends", b.ebpf.MaxFrontends}, {"ebpf-max-endpoints", b.ebpf.MaxEndpoints}, {"ebpf-max-source-ranges", b.ebpf.MaxSourceRanges},
		{"ebpf-max-affinity", b.ebpf.MaxAffinity}, {"ebpf-max-connections", b.ebpf.MaxConnections},
	} {
		if size.n < 1 || size.n > ebpf.MaxSize {
			errs = append(errs, wrong(size.flag, size.n, fmt.Sprintf("it can be 1 to %d", ebpf.MaxSize)))
		}
	}
	if names := catalog.Names(b.drivers()); !slices.Contains(names, b.name) {
		errs = append(errs, wrong("backend", b.name, "it can be "+strings.Join(names, ", ")))
	}
	return errors.Join(errs...)
}

// wrong is the error of a flag's value.
func wrong(flag string, value any, allowed string) error {
	return fmt.Errorf("--%s is %q; %s", flag, fmt.Sprint(value), allowed)
}

func (l *logFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&l.format, "logging-format", "text", "text or json")
	fs.IntVarP(&l.level, "v", "v", 0, "how much to log: 0 what an operator needs, 4 and more for developers")
}

func (l *logFlags) logger() (*slog.Logger, error) {
	opts := &slog.HandlerOptions{}
	if l.level >= 4 {
		opts.Level = slog.LevelDebug
	}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, fmt.Errorf("--logging-format is %q; it can be text or json", l.format)
}

// check finds what is wrong with the flags themselves.
func (f *runFlags) check() error {
	errs := []error{f.backend.check()}
	checkAddr := func(flag, addr string) {
		if _, err := netip.ParseAddrPort(addr); addr != "" && err != nil {
			errs = append(errs, wrong(flag, addr, "it must be an IP address and a port, as in 127.0.0.1:10249"))
		}
	}
	checkAddr("healthz-bind-address", f.healthz)
	checkAddr("metrics-bind-address", f.metrics)
	checkPositive := func(flag string, d time.Duration) {
		if d <= 0 {
			errs = append(errs, wrong(flag, d, "it must be more than 0"))
		}
	}
	checkPositive("min-sync-interval", f.minInterval)
	checkPositive("verify-interval", f.audit)
	if f.manifests != "" && (f.kubeconfig != "" || f.master != "") {
		errs = append(errs, errors.New("--manifests excludes --kubeconfig and --master: give one source of Services"))
	}
	if f.manifests != "" {
		if info, err := os.Stat(f.manifests); err != nil || !info.IsDir() {
			errs = append(errs, wrong("manifests", f.manifests, "it must be a directory that is there"))
		}
	}
	return errors.Join(errs...)
}

// watcherOptions is what the flags say to the watcher.
func (f *runFlags) watcherOptions(log *slog.Logger, families []dataplane.Family) (watcher.Options, error) {
	name := f.hostname
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return watcher.Options{}, fmt.Errorf("finding this Node's name (--hostname-override gives it): %w", err)
		}
	}
	o := watcher.Options{
		Log:                log,
		NodeName:           name,
		Families:           families,
		DetectLocal:        watcher.DetectLocal{Mode: watcher.DetectLocalMode(f.detectLocalMode)},
		NodePortAddresses:  f.nodePortAddresses,
		LocalhostNodePorts: f.localhostNodePorts,
		MasqueradeAll:      f.masqueradeAll,
		ExternalIPs:        true,
	}
	switch o.DetectLocal.Mode {
	case watcher.BridgeInterface:
		o.DetectLocal.Interface = f.bridge
	case watcher.InterfaceNamePrefix:
		o.DetectLocal.Interface = f.prefix
	}
	for _, cidr := range strings.FieldsFunc(f.clusterCIDR, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return o, wrong("cluster-cidr", f.clusterCIDR, "it must be an address range such as 10.244.0.0/16, or one for each family with a comma between")
		}
		o.DetectLocal.ClusterCIDRs = append(o.DetectLocal.ClusterCIDRs, p)
	}
	return o, nil
}
