package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

// Options are the flags of `switchyard run`: kube-proxy's, with its names,
// meanings and defaults, and ours.
type Options struct {
	Backends []string // the names that --backend takes; set before AddFlags

	File     string // --config
	OwnFile  string // --switchyard-config
	WriteTo  string // --write-config-to
	Cleanup  bool
	InitOnly bool

	healthzPort, metricsPort uint16 // deprecated
	given                    *Config
	flags                    *pflag.FlagSet
}

// WithDashes gives a flag its name with dashes, as kube-proxy does: --cluster_cidr
// is --cluster-cidr.
func WithDashes(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
}

// AddFlags adds the flags to fs, which is to be parsed before Complete.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	o.given, o.flags = Default(), fs
	fs.SortFlags = false
	fs.SetNormalizeFunc(WithDashes)
	fs.StringVar(&o.File, "config", "", "file with a KubeProxyConfiguration, a SwitchyardConfiguration or both; kube-proxy's flags then count as they do there: few of them")
	fs.StringVar(&o.OwnFile, "switchyard-config", "", "file with a SwitchyardConfiguration, where --config does not have it")
	fs.StringVar(&o.WriteTo, "write-config-to", "", "write the configuration, with all defaults, to this file and end")
	fs.BoolVar(&o.Cleanup, "cleanup", false, "remove what Switchyard and kube-proxy put into the kernel and end, as switchyard cleanup --kube-proxy does")
	fs.BoolVar(&o.InitOnly, "init-only", false, "set what needs full root privileges and end, so that the agent can run with fewer")
	fs.StringVar(&o.given.LockDir, "lock-dir", o.given.LockDir, "directory of the lock that lets one agent or cleanup at a time program a network namespace; all of a machine must share it")
	o.given.addFlags(fs, o.Backends)
	fs.Uint16Var(&o.healthzPort, "healthz-port", healthzPort, "port of the health server; 0: none")
	fs.Uint16Var(&o.metricsPort, "metrics-port", metricsPort, "port of the metrics server; 0: none")
	// Neither can fail: both flags are there.
	_ = fs.MarkDeprecated("healthz-port", "use --healthz-bind-address")
	_ = fs.MarkDeprecated("metrics-port", "use --metrics-bind-address")
	// Of a library that kube-proxy links; they do nothing there either.
	for _, name := range []string{"boot-id-file", "machine-id-file"} {
		fs.String(name, "", "of no meaning")
		_ = fs.MarkHidden(name)
	}
}

// AddBackendFlags adds those flags that are about backends, for commands that
// run no agent.
func (o *Options) AddBackendFlags(fs *pflag.FlagSet) {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(all)
	all.VisitAll(func(f *pflag.Flag) {
		field := fieldOf(f.Name)
		if f.Name == "config" || f.Name == "switchyard-config" || f.Name == "lock-dir" || field == ownKind+".backend" || field == ownKind+".socketLB" || field == "iptables.masqueradeBit" ||
			strings.HasPrefix(field, ownKind+".ebpf.") || strings.HasPrefix(field, ownKind+".iptables.") || strings.HasPrefix(field, ownKind+".ipvs.") {
			fs.AddFlag(f)
		}
	})
	o.flags = fs
}

// addFlags adds the flags that fill c. Their defaults are what c holds.
func (c *Config) addFlags(fs *pflag.FlagSet, backends []string) {
	k, s := &c.KubeProxy, &c.Switchyard
	fs.StringVar(&s.Backend, "backend", s.Backend, "the kernel mechanism: "+strings.Join(backends, ", ")+"; default: what --proxy-mode says")
	fs.StringVar(&s.SocketLB, "socket-lb", s.SocketLB, "whose sockets eBPF translates, on top of the backend: auto (the node's and its pods', but for pods that translate their own connections), all, tcp (theirs, TCP only), node (the node's own), off; default: auto for backend ebpf, off for the others")
	fs.DurationVar(&s.MinSyncInterval.Duration, "min-sync-interval", s.MinSyncInterval.Duration, "least time between two Syncs of the kernel; what changes meanwhile is one Sync; 0: four times what the last one took, at most 20ms")
	fs.DurationVar(&s.VerifyInterval.Duration, "verify-interval", s.VerifyInterval.Duration, "how often the kernel is compared with what is wanted, and repaired where it differs")
	fs.StringSliceVar(&s.APIServers, "apiserver", s.APIServers, "address of an API server, HOST:PORT, to connect to in place of the kubeconfig's or the Service's; of several, with commas between, the next where one fails")
	fs.BoolVar(&s.TakeOver, "take-over", s.TakeOver, "once all Services are forwarded, remove what another backend or a kube-proxy that has ended left, without an end to connections")
	fs.StringVar(&s.Manifests, "manifests", s.Manifests, "directory with Services, EndpointSlices and Nodes as YAML or JSON, in place of an API server")
	fs.StringVar(&s.Socket, "socket", s.Socket, "path of the Unix socket where status, get, explain and verify are answered, for root alone; empty: nowhere")
	addEBPFFlags(&s.EBPF, fs)
	fs.DurationVar(&s.IPVS.DrainTimeout.Duration, "ipvs-drain-timeout", s.IPVS.DrainTimeout.Duration, "for the IPVS backend: most time that TCP and SCTP connections to a removed endpoint go on")
	fs.StringVar(&s.IPTables.Mode, "iptables-mode", s.IPTables.Mode, "which iptables to call: auto, nft or legacy")

	fs.StringVar((*string)(&k.Mode), "proxy-mode", string(k.Mode), "kube-proxy's name for --backend; default: auto")
	fs.Var(gatesFlag{&k.FeatureGates}, "feature-gates", "kube-proxy's feature gates; few of them have a meaning here")
	fs.StringVar(&k.ClientConnection.Kubeconfig, "kubeconfig", k.ClientConnection.Kubeconfig, "file that tells how to reach the API server; default: as a pod in the cluster")
	fs.StringVar(&c.Master, "master", c.Master, "address of the API server, in place of the kubeconfig's")
	fs.StringVar(&k.ClientConnection.ContentType, "kube-api-content-type", k.ClientConnection.ContentType, "content type of what the API server answers")
	fs.Int32Var(&k.ClientConnection.Burst, "kube-api-burst", k.ClientConnection.Burst, "most requests to the API server at once")
	fs.Float32Var(&k.ClientConnection.QPS, "kube-api-qps", k.ClientConnection.QPS, "requests to the API server per second")
	fs.StringVar(&k.HostnameOverride, "hostname-override", k.HostnameOverride, "name of this Node; default: the hostname, in lower case")
	fs.StringVar(&k.BindAddress, "bind-address", k.BindAddress, "this node's primary address, in place of what the Node object says; nothing is bound to it")
	fs.StringVar(&k.HealthzBindAddress, "healthz-bind-address", k.HealthzBindAddress, "where /healthz, /livez and /readyz answer; empty: nowhere")
	fs.StringVar(&k.MetricsBindAddress, "metrics-bind-address", k.MetricsBindAddress, "where /metrics answers; empty: nowhere")
	fs.BoolVar(&k.BindAddressHardFail, "bind-address-hard-fail", k.BindAddressHardFail, "end when one of these addresses cannot be had, instead of trying again")
	fs.BoolVar(&k.EnableProfiling, "profiling", k.EnableProfiling, "serve /debug/pprof beside /metrics")
	fs.StringVar(&k.ShowHiddenMetricsForVersion, "show-hidden-metrics-for-version", k.ShowHiddenMetricsForVersion, "of no meaning here: no metric is hidden")
	fs.Int32Var(k.OOMScoreAdj, "oom-score-adj", *k.OOMScoreAdj, "the kernel's oom_score_adj of this process, -1000 to 1000")
	fs.DurationVar(&k.ConfigSyncPeriod.Duration, "config-sync-period", k.ConfigSyncPeriod.Duration, "of no meaning here: nothing is refreshed by the clock")
	addTrafficFlags(k, fs)
	addConntrackFlags(&k.Conntrack, fs)
	addIPVSFlags(&k.IPVS, fs)
	addLogFlags(&k.Logging, fs)
}

func addEBPFFlags(e *EBPF, fs *pflag.FlagSet) {
	const only = "for --socket-lb: "
	fs.StringVar(&e.CgroupRoot, "ebpf-cgroup-root", e.CgroupRoot, only+"cgroup v2 directory of this node's processes and pods; default: where cgroup v2 is mounted")
	fs.StringVar(&e.PinDir, "ebpf-pin-dir", e.PinDir, only+"directory of this agent on a bpf file system")
	fs.IntVar(&e.MaxFrontends, "ebpf-max-frontends", e.MaxFrontends, only+"most addresses and ports of Services; more are left to packets")
	fs.IntVar(&e.MaxEndpoints, "ebpf-max-endpoints", e.MaxEndpoints, only+"most endpoints of all Service ports together, once for each pool; more are left to packets")
	fs.IntVar(&e.MaxAffinity, "ebpf-max-affinity", e.MaxAffinity, only+"most clients with session affinity, and most UDP flows of unconnected sockets")
	fs.VarPF(optionalBool{&e.SocketLB}, "ebpf-socket-lb", "", "false: as --socket-lb=off").NoOptDefVal = "true"
	fs.IntVar(&e.MaxSourceRanges, "ebpf-max-source-ranges", e.MaxSourceRanges, "of no meaning any more")
	fs.IntVar(&e.MaxConnections, "ebpf-max-connections", e.MaxConnections, "of no meaning any more")
	for _, name := range []string{"ebpf-socket-lb", "ebpf-max-source-ranges", "ebpf-max-connections"} {
		_ = fs.MarkHidden(name) // Deprecated tells of them; this cannot fail: the flag is there
	}
}

// optionalBool is a flag that may be unset.
type optionalBool struct{ to **bool }

// Set implements pflag.Value.
func (o optionalBool) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err == nil {
		*o.to = &b
	}
	return err
}

// Type implements pflag.Value.
func (o optionalBool) Type() string { return "bool" }

func (o optionalBool) String() string {
	if o.to == nil || *o.to == nil {
		return ""
	}
	return strconv.FormatBool(**o.to)
}

func addTrafficFlags(k *kubeproxy.KubeProxyConfiguration, fs *pflag.FlagSet) {
	fs.StringVar((*string)(&k.DetectLocalMode), "detect-local-mode", string(k.DetectLocalMode), "how packets of this node's pods are recognised: ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	fs.StringVar(&k.ClusterCIDR, "cluster-cidr", k.ClusterCIDR, "address ranges of the pods, one for each family, for ClusterCIDR")
	fs.StringVar(&k.DetectLocal.BridgeInterface, "pod-bridge-interface", k.DetectLocal.BridgeInterface, "the pods' bridge, for BridgeInterface")
	fs.StringVar(&k.DetectLocal.InterfaceNamePrefix, "pod-interface-name-prefix", k.DetectLocal.InterfaceNamePrefix, "start of the pods' interface names, for InterfaceNamePrefix")
	fs.StringSliceVar(&k.NodePortAddresses, "nodeport-addresses", k.NodePortAddresses, "node addresses that take NodePorts: CIDRs, primary, localhost, all; default: all")
	fs.BoolVar(&k.IPTables.MasqueradeAll, "masquerade-all", k.IPTables.MasqueradeAll, "masquerade pods that use a ClusterIP too")
	fs.Int32Var(k.IPTables.MasqueradeBit, "iptables-masquerade-bit", *k.IPTables.MasqueradeBit, "bit of the packet mark that means masquerade, 0 to 31")
	fs.BoolVar(k.IPTables.LocalhostNodePorts, "iptables-localhost-nodeports", *k.IPTables.LocalhostNodePorts, "let IPv4 NodePorts answer on 127.0.0.1")
	fs.DurationVar(&k.IPTables.SyncPeriod.Duration, "iptables-sync-period", k.IPTables.SyncPeriod.Duration, "half of how long the kernel may lack something wanted before the agent calls itself unhealthy")
	fs.DurationVar(&k.IPTables.MinSyncPeriod.Duration, "iptables-min-sync-period", k.IPTables.MinSyncPeriod.Duration, "as --min-sync-interval, where it is not 1s")
}

func addConntrackFlags(c *kubeproxy.KubeProxyConntrackConfiguration, fs *pflag.FlagSet) {
	fs.Int32Var(c.MaxPerCore, "conntrack-max-per-core", *c.MaxPerCore, "conntrack entries for each CPU; 0: leave the kernel's limit")
	fs.Int32Var(c.Min, "conntrack-min", *c.Min, "least number of conntrack entries, whatever the CPUs")
	fs.DurationVar(&c.TCPEstablishedTimeout.Duration, "conntrack-tcp-timeout-established", c.TCPEstablishedTimeout.Duration, "idle time of established TCP connections; 0: leave the kernel's")
	fs.DurationVar(&c.TCPCloseWaitTimeout.Duration, "conntrack-tcp-timeout-close-wait", c.TCPCloseWaitTimeout.Duration, "idle time of TCP connections in CLOSE_WAIT; 0: leave the kernel's")
	fs.BoolVar(&c.TCPBeLiberal, "conntrack-tcp-be-liberal", c.TCPBeLiberal, "let TCP packets outside of the window pass")
	fs.DurationVar(&c.UDPTimeout.Duration, "conntrack-udp-timeout", c.UDPTimeout.Duration, "idle time of one-way UDP flows; 0: leave the kernel's")
	fs.DurationVar(&c.UDPStreamTimeout.Duration, "conntrack-udp-timeout-stream", c.UDPStreamTimeout.Duration, "idle time of two-way UDP flows; 0: leave the kernel's")
}

func addIPVSFlags(c *kubeproxy.KubeProxyIPVSConfiguration, fs *pflag.FlagSet) {
	const only = "for the IPVS backend: "
	fs.DurationVar(&c.SyncPeriod.Duration, "ipvs-sync-period", c.SyncPeriod.Duration, only+"as --iptables-sync-period")
	fs.DurationVar(&c.MinSyncPeriod.Duration, "ipvs-min-sync-period", c.MinSyncPeriod.Duration, only+"as --min-sync-interval, where it is not 0")
	fs.StringVar(&c.Scheduler, "ipvs-scheduler", c.Scheduler, only+"how endpoints of Services without the annotation switchyard.io/ipvs-scheduler are picked: "+strings.Join(dataplane.Schedulers(), ", ")+"; default: "+catalog.DefaultOptions().IPVS.Scheduler)
	fs.StringSliceVar(&c.ExcludeCIDRs, "ipvs-exclude-cidrs", c.ExcludeCIDRs, only+"address ranges where another program's IPVS service stays though a Service wants its place")
	fs.BoolVar(&c.StrictARP, "ipvs-strict-arp", c.StrictARP, only+"answer ARP only for addresses of the interface that was asked")
	fs.DurationVar(&c.TCPTimeout.Duration, "ipvs-tcp-timeout", c.TCPTimeout.Duration, only+"idle time of TCP connections; 0: leave the kernel's")
	fs.DurationVar(&c.TCPFinTimeout.Duration, "ipvs-tcpfin-timeout", c.TCPFinTimeout.Duration, only+"time of TCP connections after a FIN; 0: leave the kernel's")
	fs.DurationVar(&c.UDPTimeout.Duration, "ipvs-udp-timeout", c.UDPTimeout.Duration, only+"idle time of UDP flows; 0: leave the kernel's")
}

// addLogFlags adds what logsapi.AddFlags does, which sets some fields back.
func addLogFlags(l *logsapi.LoggingConfiguration, fs *pflag.FlagSet) {
	const none = "of no meaning here: the log is one stream to stderr, without a buffer"
	fs.StringVar(&l.Format, "logging-format", l.Format, "text or json")
	fs.VarP(logsapi.VerbosityLevelPflag(&l.Verbosity), "v", "v", "how much to log: 0 what an operator needs, 4 and more for developers")
	fs.Var(logsapi.VModuleConfigurationPflag(&l.VModule), "vmodule", "of no meaning here: the log has one level for all files")
	fs.DurationVar(&l.FlushFrequency.Duration.Duration, "log-flush-frequency", l.FlushFrequency.Duration.Duration, none)
	fs.BoolVar(&l.Options.Text.SplitStream, "log-text-split-stream", l.Options.Text.SplitStream, none)
	fs.Var(&l.Options.Text.InfoBufferSize, "log-text-info-buffer-size", none)
	fs.BoolVar(&l.Options.JSON.SplitStream, "log-json-split-stream", l.Options.JSON.SplitStream, none)
	fs.Var(&l.Options.JSON.InfoBufferSize, "log-json-info-buffer-size", none)
}

// fieldOf is which field a flag fills; "": none. The paths are those of the two
// documents, ours with its kind before it.
func fieldOf(flag string) string {
	return cmp.Or(ownFieldOf(flag), kubeProxyFieldOf(flag))
}

func ownFieldOf(flag string) string {
	return map[string]string{
		"backend":            ownKind + ".backend",
		"socket-lb":          ownKind + ".socketLB",
		"min-sync-interval":  ownKind + ".minSyncInterval",
		"verify-interval":    ownKind + ".verifyInterval",
		"apiserver":          ownKind + ".apiServers",
		"take-over":          ownKind + ".takeOver",
		"manifests":          ownKind + ".manifests",
		"socket":             ownKind + ".socket",
		"iptables-mode":      ownKind + ".iptables.mode",
		"ipvs-drain-timeout": ownKind + ".ipvs.drainTimeout",

		"ebpf-socket-lb":         ownKind + ".ebpf.socketLB",
		"ebpf-cgroup-root":       ownKind + ".ebpf.cgroupRoot",
		"ebpf-pin-dir":           ownKind + ".ebpf.pinDir",
		"ebpf-max-frontends":     ownKind + ".ebpf.maxFrontends",
		"ebpf-max-endpoints":     ownKind + ".ebpf.maxEndpoints",
		"ebpf-max-source-ranges": ownKind + ".ebpf.maxSourceRanges",
		"ebpf-max-affinity":      ownKind + ".ebpf.maxAffinity",
		"ebpf-max-connections":   ownKind + ".ebpf.maxConnections",
	}[flag]
}

func kubeProxyFieldOf(flag string) string {
	return map[string]string{
		"proxy-mode":                      "mode",
		"feature-gates":                   "featureGates",
		"kubeconfig":                      "clientConnection.kubeconfig",
		"kube-api-content-type":           "clientConnection.contentType",
		"kube-api-burst":                  "clientConnection.burst",
		"kube-api-qps":                    "clientConnection.qps",
		"hostname-override":               "hostnameOverride",
		"bind-address":                    "bindAddress",
		"healthz-bind-address":            "healthzBindAddress",
		"metrics-bind-address":            "metricsBindAddress",
		"bind-address-hard-fail":          "bindAddressHardFail",
		"profiling":                       "enableProfiling",
		"show-hidden-metrics-for-version": "showHiddenMetricsForVersion",
		"oom-score-adj":                   "oomScoreAdj",
		"config-sync-period":              "configSyncPeriod",

		"detect-local-mode":            "detectLocalMode",
		"cluster-cidr":                 "clusterCIDR",
		"pod-bridge-interface":         "detectLocal.bridgeInterface",
		"pod-interface-name-prefix":    "detectLocal.interfaceNamePrefix",
		"nodeport-addresses":           "nodePortAddresses",
		"masquerade-all":               "iptables.masqueradeAll",
		"iptables-masquerade-bit":      "iptables.masqueradeBit",
		"iptables-localhost-nodeports": "iptables.localhostNodePorts",
		"iptables-sync-period":         "iptables.syncPeriod",
		"iptables-min-sync-period":     "iptables.minSyncPeriod",

		"conntrack-max-per-core":            "conntrack.maxPerCore",
		"conntrack-min":                     "conntrack.min",
		"conntrack-tcp-timeout-established": "conntrack.tcpEstablishedTimeout",
		"conntrack-tcp-timeout-close-wait":  "conntrack.tcpCloseWaitTimeout",
		"conntrack-tcp-be-liberal":          "conntrack.tcpBeLiberal",
		"conntrack-udp-timeout":             "conntrack.udpTimeout",
		"conntrack-udp-timeout-stream":      "conntrack.udpStreamTimeout",

		"ipvs-sync-period":     "ipvs.syncPeriod",
		"ipvs-min-sync-period": "ipvs.minSyncPeriod",
		"ipvs-scheduler":       "ipvs.scheduler",
		"ipvs-exclude-cidrs":   "ipvs.excludeCIDRs",
		"ipvs-strict-arp":      "ipvs.strictARP",
		"ipvs-tcp-timeout":     "ipvs.tcpTimeout",
		"ipvs-tcpfin-timeout":  "ipvs.tcpFinTimeout",
		"ipvs-udp-timeout":     "ipvs.udpTimeout",

		"logging-format":            "logging.format",
		"log-flush-frequency":       "logging.flushFrequency",
		"v":                         "logging.verbosity",
		"vmodule":                   "logging.vmodule",
		"log-text-split-stream":     "logging.options.text.splitStream",
		"log-text-info-buffer-size": "logging.options.text.infoBufferSize",
		"log-json-split-stream":     "logging.options.json.splitStream",
		"log-json-info-buffer-size": "logging.options.json.infoBufferSize",
	}[flag]
}

// countsBesideFile is whether a flag counts where a KubeProxyConfiguration is
// read from a file: ours do, and those that kube-proxy itself heeds then (§2.2).
func countsBesideFile(flag string) bool {
	field := fieldOf(flag)
	return strings.HasPrefix(field, ownKind+".") || strings.HasPrefix(field, "logging.") ||
		slices.Contains([]string{"hostname-override", "master", "lock-dir"}, flag)
}

// Complete is the Config that the parsed flags and their files make. It reads
// the files each time that it is called.
func (o *Options) Complete() (*Config, error) {
	if o.File == "" && o.OwnFile == "" {
		c := o.given
		c.said = o.origins()
		o.deprecatedPorts(c)
		c.modeOfFlags()
		c.lowerHostname()
		return c, nil
	}
	c := &Config{said: origins{}, Master: o.given.Master, LockDir: o.given.LockDir}
	have := documents{}
	files := slices.DeleteFunc([]string{o.File, o.OwnFile}, func(f string) bool { return f == "" })
	c.text = contents(files) // before they are read: a change since then is seen
	for _, file := range files {
		if err := c.load(file, &have); err != nil {
			return nil, err
		}
	}
	if !have.kubeProxy {
		o.given.KubeProxy.DeepCopyInto(&c.KubeProxy)
		o.deprecatedPorts(c)
		c.modeOfFlags()
	}
	c.fillDefaults()
	if err := o.beside(c, have.kubeProxy); err != nil {
		return nil, err
	}
	c.lowerHostname()
	return c, nil
}

// beside puts the flags into c that count beside its files.
func (o *Options) beside(c *Config, file bool) error {
	var into pflag.FlagSet
	c.addFlags(&into, nil)
	var ignored []string
	var errs []error
	o.flags.Visit(func(f *pflag.Flag) {
		switch {
		case fieldOf(f.Name) == "":
		case !file && !strings.HasPrefix(fieldOf(f.Name), ownKind+"."): // there already
			c.said[fieldOf(f.Name)] = "--" + f.Name
		case countsBesideFile(f.Name):
			c.said[fieldOf(f.Name)] = "--" + f.Name
			if err := into.Set(f.Name, f.Value.String()); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", f.Name, err))
			}
		default:
			ignored = append(ignored, "--"+f.Name)
		}
	})
	if len(ignored) > 0 {
		c.Warnings = append(c.Warnings, "these flags do not count beside a "+kubeProxyKind+", as in kube-proxy: "+strings.Join(ignored, ", "))
	}
	return errors.Join(errs...)
}

// Flags is the value of every flag.
func (o *Options) Flags() map[string]string {
	all := map[string]string{}
	o.flags.VisitAll(func(f *pflag.Flag) { all[f.Name] = f.Value.String() })
	return all
}

// origins is how to name the fields that flags have set.
func (o *Options) origins() origins {
	said := origins{}
	o.flags.Visit(func(f *pflag.Flag) {
		if path := fieldOf(f.Name); path != "" {
			said[path] = "--" + f.Name
		}
	})
	return said
}

// deprecatedPorts heeds --healthz-port and --metrics-port, as kube-proxy does: 0
// switches a server off.
func (o *Options) deprecatedPorts(c *Config) {
	for _, p := range []struct {
		port uint16
		addr *string
	}{{o.healthzPort, &c.KubeProxy.HealthzBindAddress}, {o.metricsPort, &c.KubeProxy.MetricsBindAddress}} {
		if p.port == 0 {
			*p.addr = ""
		} else {
			*p.addr = withPort(*p.addr, p.port)
		}
	}
}

// modeOfFlags gives the flags that name iptables their meaning in nftables mode,
// which has none of its own.
func (c *Config) modeOfFlags() {
	if c.KubeProxy.Mode == modeNFTables {
		i, n := &c.KubeProxy.IPTables, &c.KubeProxy.NFTables
		n.SyncPeriod, n.MinSyncPeriod, n.MasqueradeAll = i.SyncPeriod, i.MinSyncPeriod, i.MasqueradeAll
	}
}

func (c *Config) lowerHostname() {
	c.KubeProxy.HostnameOverride = strings.ToLower(strings.TrimSpace(c.KubeProxy.HostnameOverride))
}
