package config

import (
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/lock"
)

// settings returns a row for each setting, with pointers into c. A new setting
// is a row here and a line of the table in docs/kube-proxy.md, which a test
// compares with the rows. backends are the names that --backend takes.
func (c *Config) settings(backends []string) []setting {
	rows := []setting{
		{flag: "lock-dir", to: &c.LockDir, unset: lock.Dir, besideFile: true, kernel: true,
			help: "directory of the lock that lets one agent or cleanup at a time program a network namespace; " +
				"all of a machine must share it"},
	}
	rows = append(rows, c.ownSettings(backends)...)
	rows = append(rows, c.kubeProxySettings()...)
	rows = append(rows, c.trafficSettings()...)
	rows = append(rows, c.conntrackSettings()...)
	rows = append(rows, c.ipvsSettings()...)
	rows = append(rows, c.nftablesSettings()...)
	rows = append(rows, c.logSettings()...)
	return append(rows, c.unusedSettings()...)
}

// ownSettings returns the rows of our own document.
func (c *Config) ownSettings(backends []string) []setting {
	s := &c.Switchyard
	names := strings.Join(backends, ", ")
	const modes = "auto, nft or legacy"
	rows := []setting{
		{flag: "backend", path: "backend", to: &s.Backend, must: orEmpty(oneOf(names)), kernel: true,
			help: "the kernel mechanism: " + names + "; default: what --proxy-mode says"},
		{flag: "socket-lb", path: "socketLB", to: &s.SocketLB, must: orEmpty(oneOf(strings.Join(catalog.SocketLBs(), ", "))), kernel: true,
			help: "whose sockets eBPF translates, on top of the backend: auto (the node's and its pods', except pods that " +
				"translate their own connections), all, tcp (as all, but TCP only), node (the node's own), off; " +
				"default: auto for backend ebpf, off for the others"},
		{flag: "min-sync-interval", path: "minSyncInterval", to: &s.MinSyncInterval.Duration, must: notNegative,
			help: "least time between two Syncs of the kernel; what changes meanwhile is one Sync; " +
				"0: four times what the last one took, at most 20ms; with iptables two to four times, at most 1s"},
		{flag: "verify-interval", path: "verifyInterval", to: &s.VerifyInterval.Duration, unset: time.Minute, must: positive,
			help: "how often the kernel is compared with what is wanted, and repaired where it differs"},
		{flag: "apiserver", path: "apiServers", to: &s.APIServers, must: hostPort,
			help: "address of an API server, HOST:PORT, to connect to in place of the kubeconfig's or the Service's; " +
				"of several, separated by commas, the next where one fails"},
		{flag: "take-over", path: "takeOver", to: &s.TakeOver,
			help: "once all Services are forwarded, remove what another backend or a kube-proxy that has ended left, " +
				"without ending connections"},
		{flag: "manifests", path: "manifests", to: &s.Manifests, must: orEmpty(directory),
			help: "directory with Services, EndpointSlices and Nodes as YAML or JSON, in place of an API server"},
		{flag: "socket", path: "socket", to: &s.Socket, unset: inspect.DefaultSocket,
			help: "path of the Unix socket where status, get, explain and verify are answered, for root alone; empty: nowhere"},
	}
	rows = append(rows, s.EBPF.settings()...)
	rows = append(rows,
		setting{flag: "ipvs-drain-timeout", path: "ipvs.drainTimeout", to: &s.IPVS.DrainTimeout.Duration,
			unset: catalog.DefaultOptions().IPVS.DrainTimeout, must: positive, kernel: true,
			help: "for the IPVS backend: most time that TCP and SCTP connections to a removed endpoint go on"},
		setting{flag: "iptables-mode", path: "iptables.mode", to: &s.IPTables.Mode, unset: "auto", must: oneOf(modes), kernel: true,
			help: "which iptables to call: " + modes})
	for i := range rows {
		rows[i].path, rows[i].besideFile = ownKind+"."+rows[i].path, true
	}
	return rows
}

// settings returns the rows of the translation of sockets.
func (e *EBPF) settings() []setting {
	const (
		only = "for --socket-lb: "
		gone = "no meaning any more: "
	)
	unset, size := catalog.DefaultOptions().EBPF, between(1, catalog.MaxMapSize)
	rows := []setting{
		{flag: "ebpf-cgroup-root", path: "cgroupRoot", to: &e.CgroupRoot,
			help: only + "cgroup v2 directory of this node's processes and pods; default: where cgroup v2 is mounted"},
		{flag: "ebpf-pin-dir", path: "pinDir", to: &e.PinDir, unset: unset.PinDir,
			help: only + "directory of this agent on a bpf file system"},
		{flag: "ebpf-max-frontends", path: "maxFrontends", to: &e.MaxFrontends, unset: unset.MaxFrontends, must: size,
			help: only + "most addresses and ports of Services; more are left to packets"},
		{flag: "ebpf-max-endpoints", path: "maxEndpoints", to: &e.MaxEndpoints, unset: unset.MaxEndpoints, must: size,
			help: only + "most endpoints of all Service ports together, once for each pool; more are left to packets"},
		{flag: "ebpf-max-affinity", path: "maxAffinity", to: &e.MaxAffinity, unset: unset.MaxAffinity, must: size,
			help: only + "most clients with session affinity, and most UDP flows of unconnected sockets"},
		{flag: "ebpf-socket-lb", path: "socketLB", to: &e.SocketLB,
			deprecated: "deprecated: --socket-lb=auto stands for true, --socket-lb=off for false"},
		{flag: "ebpf-max-source-ranges", path: "maxSourceRanges", to: &e.MaxSourceRanges,
			deprecated: gone + "the packet backend serves Services with source ranges"},
		{flag: "ebpf-max-connections", path: "maxConnections", to: &e.MaxConnections,
			deprecated: gone + "the kernel's conntrack has the connections, and its own limit"},
	}
	for i := range rows {
		rows[i].path, rows[i].kernel = "ebpf."+rows[i].path, true
	}
	return rows
}

// kubeProxySettings returns the rows of kube-proxy's settings about the process
// and the API server.
func (c *Config) kubeProxySettings() []setting {
	k := &c.KubeProxy
	api := &k.ClientConnection
	return []setting{
		{flag: "proxy-mode", path: "mode", to: (*string)(&k.Mode), help: "kube-proxy's name for --backend; default: auto"},
		{flag: "feature-gates", path: "featureGates", to: &k.FeatureGates,
			help: "kube-proxy's feature gates; few of them have a meaning here"},
		{flag: "kubeconfig", path: "clientConnection.kubeconfig", to: &api.Kubeconfig,
			help: "file that says how to reach the API server; default: as a pod in the cluster"},
		{flag: "master", to: &c.Master, besideFile: true, help: "address of the API server, in place of the kubeconfig's"},
		{path: "clientConnection.acceptContentTypes", to: &api.AcceptContentTypes},
		{flag: "kube-api-content-type", path: "clientConnection.contentType", to: &api.ContentType,
			unset: "application/vnd.kubernetes.protobuf", help: "content type of what the API server answers"},
		{flag: "kube-api-burst", path: "clientConnection.burst", to: &api.Burst, unset: 10, must: notNegative,
			help: "most requests to the API server at once"},
		{flag: "kube-api-qps", path: "clientConnection.qps", to: &api.QPS, unset: 5, help: "requests to the API server per second"},
		{flag: "hostname-override", path: "hostnameOverride", to: &k.HostnameOverride, besideFile: true,
			help: "name of this Node; default: the hostname, in lower case"},
		{flag: "bind-address", path: "bindAddress", to: &k.BindAddress, unset: "0.0.0.0", must: address,
			help: "this node's primary address, in place of what the Node object says; nothing is bound to it"},
		{flag: "healthz-bind-address", path: "healthzBindAddress", to: &k.HealthzBindAddress, must: orEmpty(addressPort),
			help: "where /healthz, /livez and /readyz answer; empty: nowhere"},
		{flag: "metrics-bind-address", path: "metricsBindAddress", to: &k.MetricsBindAddress, must: orEmpty(addressPort),
			help: "where /metrics answers; empty: nowhere"},
		{flag: "bind-address-hard-fail", path: "bindAddressHardFail", to: &k.BindAddressHardFail,
			help: "end when one of these addresses cannot be had, instead of trying again"},
		{flag: "profiling", path: "enableProfiling", to: &k.EnableProfiling, help: "serve /debug/pprof alongside /metrics"},
		{flag: "show-hidden-metrics-for-version", path: "showHiddenMetricsForVersion", to: &k.ShowHiddenMetricsForVersion,
			idle: "no metric is hidden"},
		{flag: "oom-score-adj", path: "oomScoreAdj", to: &k.OOMScoreAdj, unset: -999, must: between(-1000, 1000), live: true,
			help: "the kernel's oom_score_adj of this process, -1000 to 1000"},
		{flag: "config-sync-period", path: "configSyncPeriod", to: &k.ConfigSyncPeriod.Duration, unset: 15 * time.Minute, must: positive,
			idle: "nothing is refreshed by the clock; watches report every change"},
	}
}

// trafficSettings returns the rows of kube-proxy's settings about what is
// forwarded for whom.
func (c *Config) trafficSettings() []setting {
	k := &c.KubeProxy
	const modes = "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"
	return []setting{
		{flag: "detect-local-mode", path: "detectLocalMode", to: (*string)(&k.DetectLocalMode), must: orEmpty(oneOf(modes)),
			help: "how packets of this node's pods are recognised: " + modes + "; default: ClusterCIDR"},
		{flag: "cluster-cidr", path: "clusterCIDR", to: &k.ClusterCIDR, must: clusterRanges,
			help: "address ranges of the pods, one for each family, for ClusterCIDR"},
		{flag: "pod-bridge-interface", path: "detectLocal.bridgeInterface", to: &k.DetectLocal.BridgeInterface,
			help: "the pods' bridge, for BridgeInterface"},
		{flag: "pod-interface-name-prefix", path: "detectLocal.interfaceNamePrefix", to: &k.DetectLocal.InterfaceNamePrefix,
			help: "start of the pods' interface names, for InterfaceNamePrefix"},
		{flag: "nodeport-addresses", path: "nodePortAddresses", to: &k.NodePortAddresses,
			help: "node addresses that take NodePorts: CIDRs, primary, localhost, all; default: all"},
		{flag: "masquerade-all", path: "iptables.masqueradeAll", to: &k.IPTables.MasqueradeAll,
			help: "masquerade pods that use a ClusterIP too"},
		{flag: "iptables-masquerade-bit", path: "iptables.masqueradeBit", to: &k.IPTables.MasqueradeBit, unset: 14,
			must: between(0, 31), kernel: true, help: "bit of the packet mark that means masquerade, 0 to 31"},
		{flag: "iptables-localhost-nodeports", path: "iptables.localhostNodePorts", to: &k.IPTables.LocalhostNodePorts, unset: true,
			help: "let IPv4 NodePorts answer on 127.0.0.1"},
		{flag: "iptables-sync-period", path: "iptables.syncPeriod", to: &k.IPTables.SyncPeriod.Duration, unset: 30 * time.Second,
			must: positive, help: "half of how long the kernel may lack something wanted before the agent calls itself unhealthy"},
		{flag: "iptables-min-sync-period", path: "iptables.minSyncPeriod", to: &k.IPTables.MinSyncPeriod.Duration, unset: time.Second,
			must: notNegative, help: "as --min-sync-interval, where it is not 1s"},
	}
}

func (c *Config) conntrackSettings() []setting {
	t := &c.KubeProxy.Conntrack
	rows := []setting{
		{flag: "conntrack-max-per-core", path: "conntrack.maxPerCore", to: &t.MaxPerCore, unset: 32 * 1024,
			help: "conntrack entries for each CPU; 0: leave the kernel's limit"},
		{flag: "conntrack-min", path: "conntrack.min", to: &t.Min, unset: 128 * 1024,
			help: "least number of conntrack entries, whatever the CPUs"},
		{flag: "conntrack-tcp-timeout-established", path: "conntrack.tcpEstablishedTimeout", to: &t.TCPEstablishedTimeout,
			unset: 24 * time.Hour, help: "idle time of established TCP connections; 0: leave the kernel's"},
		{flag: "conntrack-tcp-timeout-close-wait", path: "conntrack.tcpCloseWaitTimeout", to: &t.TCPCloseWaitTimeout,
			unset: time.Hour, help: "idle time of TCP connections in CLOSE_WAIT; 0: leave the kernel's"},
		{flag: "conntrack-udp-timeout", path: "conntrack.udpTimeout", to: &t.UDPTimeout.Duration,
			help: "idle time of one-way UDP flows; 0: leave the kernel's"},
		{flag: "conntrack-udp-timeout-stream", path: "conntrack.udpStreamTimeout", to: &t.UDPStreamTimeout.Duration,
			help: "idle time of two-way UDP flows; 0: leave the kernel's"},
	}
	for i := range rows {
		rows[i].must = notNegative
	}
	rows = append(rows, setting{flag: "conntrack-tcp-be-liberal", path: "conntrack.tcpBeLiberal", to: &t.TCPBeLiberal,
		help: "let TCP packets outside of the window pass"})
	for i := range rows {
		rows[i].live = true
	}
	return rows
}

func (c *Config) ipvsSettings() []setting {
	v := &c.KubeProxy.IPVS
	schedulers := strings.Join(dataplane.Schedulers(), ", ")
	rows := []setting{
		{flag: "ipvs-sync-period", path: "ipvs.syncPeriod", to: &v.SyncPeriod.Duration, unset: 30 * time.Second, must: positive,
			help: "as --iptables-sync-period"},
		{flag: "ipvs-min-sync-period", path: "ipvs.minSyncPeriod", to: &v.MinSyncPeriod.Duration, must: notNegative,
			help: "as --min-sync-interval, where it is not 0"},
		{flag: "ipvs-scheduler", path: "ipvs.scheduler", to: &v.Scheduler, must: orEmpty(oneOf(schedulers)),
			help: "how endpoints of Services without the annotation switchyard.io/ipvs-scheduler are picked: " + schedulers +
				"; default: " + catalog.DefaultOptions().IPVS.Scheduler},
		{flag: "ipvs-exclude-cidrs", path: "ipvs.excludeCIDRs", to: &v.ExcludeCIDRs, must: addressRange,
			help: "address ranges where another program's IPVS service stays though a Service wants its place"},
		{flag: "ipvs-strict-arp", path: "ipvs.strictARP", to: &v.StrictARP,
			help: "answer ARP only for addresses of the interface that was asked"},
		{flag: "ipvs-tcp-timeout", path: "ipvs.tcpTimeout", to: &v.TCPTimeout.Duration, must: wholeSeconds,
			help: "idle time of TCP connections; 0: leave the kernel's"},
		{flag: "ipvs-tcpfin-timeout", path: "ipvs.tcpFinTimeout", to: &v.TCPFinTimeout.Duration, must: wholeSeconds,
			help: "time of TCP connections after a FIN; 0: leave the kernel's"},
		{flag: "ipvs-udp-timeout", path: "ipvs.udpTimeout", to: &v.UDPTimeout.Duration, must: wholeSeconds,
			help: "idle time of UDP flows; 0: leave the kernel's"},
	}
	for i := range rows {
		rows[i].help = "for the IPVS backend: " + rows[i].help
	}
	return rows
}

// nftablesSettings returns the rows of nftables mode, which has no flags.
func (c *Config) nftablesSettings() []setting {
	n := &c.KubeProxy.NFTables
	return []setting{
		{path: "nftables.masqueradeBit", to: &n.MasqueradeBit, unset: 14, must: between(0, 31)},
		{path: "nftables.masqueradeAll", to: &n.MasqueradeAll},
		{path: "nftables.syncPeriod", to: &n.SyncPeriod.Duration, unset: 30 * time.Second, must: positive},
		{path: "nftables.minSyncPeriod", to: &n.MinSyncPeriod.Duration, unset: time.Second, must: notNegative},
	}
}

// logSettings returns the rows of the log, whose defaults component-base sets.
func (c *Config) logSettings() []setting {
	l := &c.KubeProxy.Logging
	const (
		formats   = "text or json"
		oneStream = "the log is one stream to stderr, without a buffer"
	)
	rows := []setting{
		{flag: "logging-format", path: "format", to: &l.Format, must: oneOf(formats), help: formats},
		{flag: "v", path: "verbosity", to: &l.Verbosity, live: true,
			help: "how much to log: 0 what an operator needs, 4 and more for developers"},
		{flag: "vmodule", path: "vmodule", to: &l.VModule, idle: "the log has one level for all files"},
		{flag: "log-flush-frequency", path: "flushFrequency", to: &l.FlushFrequency.Duration.Duration, idle: "each line is written at once"},
		{flag: "log-text-split-stream", path: "options.text.splitStream", to: &l.Options.Text.SplitStream, idle: oneStream},
		{flag: "log-text-info-buffer-size", path: "options.text.infoBufferSize", to: &l.Options.Text.InfoBufferSize, idle: oneStream},
		{flag: "log-json-split-stream", path: "options.json.splitStream", to: &l.Options.JSON.SplitStream, idle: oneStream},
		{flag: "log-json-info-buffer-size", path: "options.json.infoBufferSize", to: &l.Options.JSON.InfoBufferSize, idle: oneStream},
	}
	for i := range rows {
		rows[i].path, rows[i].besideFile = "logging."+rows[i].path, true
	}
	return rows
}

// unusedSettings returns the rows of fields that no flag sets and that mean
// nothing here. A row is for all fields below its path, too.
func (c *Config) unusedSettings() []setting {
	const windows = "this agent is for Linux"
	return []setting{
		{path: "winkernel", to: &c.KubeProxy.Winkernel, idle: windows},
		{path: "windowsRunAsService", to: &c.KubeProxy.WindowsRunAsService, idle: windows},
		{path: "portRange", to: &c.KubeProxy.PortRange, idle: "kube-proxy does not use it either"},
	}
}
