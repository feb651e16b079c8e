package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// kube-proxy's modes.
const (
	modeIPTables kubeproxy.ProxyMode = "iptables"
	modeIPVS     kubeproxy.ProxyMode = "ipvs"
	modeNFTables kubeproxy.ProxyMode = "nftables"
)

// Validate finds all that is wrong with a Config, before anything in the kernel
// changes. backends are the names that --backend takes. Each error names the
// field or flag, its value and what is allowed.
func (c *Config) Validate(backends []string) error {
	k := &c.KubeProxy
	errs := c.checkGates()
	errs = append(errs, c.checkBackend(backends)...)
	errs = append(errs, c.checkRanges()...)
	errs = append(errs, c.checkSizes()...)
	errs = append(errs, c.checkTimes()...)
	errs = append(errs, c.checkIPVS()...)
	errs = append(errs, c.checkAddresses()...)
	errs = append(errs, c.checkSource()...)
	if !slices.Contains([]string{"text", "json"}, k.Logging.Format) {
		errs = append(errs, c.wrong("logging.format", k.Logging.Format, "it can be text or json"))
	}
	if !slices.Contains([]string{"auto", "nft", "legacy"}, c.Switchyard.IPTables.Mode) {
		errs = append(errs, c.wrong(ownKind+".iptables.mode", c.Switchyard.IPTables.Mode, "it can be auto, nft or legacy"))
	}
	if m := c.Switchyard.SocketLB; m != "" && !slices.Contains(catalog.SocketLBs(), m) {
		errs = append(errs, c.wrong(ownKind+".socketLB", m, "it can be "+strings.Join(catalog.SocketLBs(), ", ")))
	}
	return errors.Join(errs...)
}

func (c *Config) checkBackend(backends []string) []error {
	allowed := "it can be " + strings.Join(backends, ", ")
	if b := c.Switchyard.Backend; b != "" {
		if !slices.Contains(backends, b) {
			return []error{c.wrong(ownKind+".backend", b, allowed)}
		}
		return nil
	}
	switch mode := c.KubeProxy.Mode; {
	case mode == modeIPVS && !c.Gate(gateIPVS):
		return []error{c.wrong("mode", mode, "the feature gate "+gateIPVS+" is off")}
	case mode == "" || slices.Contains(backends, string(mode)):
		return nil
	case slices.Contains([]kubeproxy.ProxyMode{modeIPTables, modeIPVS, modeNFTables}, mode):
		return []error{c.wrong("mode", mode, "this mode of kube-proxy has no backend here yet; "+allowed+"; --backend chooses whatever the mode is")}
	default:
		return []error{c.wrong("mode", mode, allowed)}
	}
}

func (c *Config) checkRanges() []error {
	var errs []error
	k := &c.KubeProxy
	for _, r := range []struct {
		path        string
		value       int32
		least, most int32
		allowed     string
	}{
		{"iptables.masqueradeBit", *k.IPTables.MasqueradeBit, 0, 31, "it can be 0 to 31"},
		{"nftables.masqueradeBit", *k.NFTables.MasqueradeBit, 0, 31, "it can be 0 to 31"},
		{"oomScoreAdj", *k.OOMScoreAdj, -1000, 1000, "it can be -1000 to 1000"},
		{"conntrack.maxPerCore", *k.Conntrack.MaxPerCore, 0, 1<<31 - 1, "it must not be less than 0"},
		{"conntrack.min", *k.Conntrack.Min, 0, 1<<31 - 1, "it must not be less than 0"},
		{"clientConnection.burst", k.ClientConnection.Burst, 0, 1<<31 - 1, "it must not be less than 0"},
	} {
		if r.value < r.least || r.value > r.most {
			errs = append(errs, c.wrong(r.path, r.value, r.allowed))
		}
	}
	return errs
}

// checkSizes finds sizes that no map can have.
func (c *Config) checkSizes() []error {
	var errs []error
	e := &c.Switchyard.EBPF
	for _, s := range []struct {
		field string
		n     int
	}{
		{"maxFrontends", e.MaxFrontends}, {"maxEndpoints", e.MaxEndpoints}, {"maxAffinity", e.MaxAffinity},
	} {
		if s.n < 1 || s.n > catalog.MaxMapSize {
			errs = append(errs, c.wrong(ownKind+".ebpf."+s.field, s.n, fmt.Sprintf("it can be 1 to %d", catalog.MaxMapSize)))
		}
	}
	return errs
}

func (c *Config) checkTimes() []error {
	var errs []error
	k, s := &c.KubeProxy, &c.Switchyard
	for _, t := range []struct {
		path  string
		value time.Duration
		least time.Duration
	}{
		{ownKind + ".minSyncInterval", s.MinSyncInterval.Duration, 0},
		{ownKind + ".verifyInterval", s.VerifyInterval.Duration, 1},
		{ownKind + ".ipvs.drainTimeout", s.IPVS.DrainTimeout.Duration, 1},
		{"iptables.syncPeriod", k.IPTables.SyncPeriod.Duration, 1},
		{"iptables.minSyncPeriod", k.IPTables.MinSyncPeriod.Duration, 0},
		{"ipvs.syncPeriod", k.IPVS.SyncPeriod.Duration, 1},
		{"ipvs.minSyncPeriod", k.IPVS.MinSyncPeriod.Duration, 0},
		{"ipvs.tcpTimeout", k.IPVS.TCPTimeout.Duration, 0},
		{"ipvs.tcpFinTimeout", k.IPVS.TCPFinTimeout.Duration, 0},
		{"ipvs.udpTimeout", k.IPVS.UDPTimeout.Duration, 0},
		{"nftables.syncPeriod", k.NFTables.SyncPeriod.Duration, 1},
		{"nftables.minSyncPeriod", k.NFTables.MinSyncPeriod.Duration, 0},
		{"conntrack.tcpEstablishedTimeout", k.Conntrack.TCPEstablishedTimeout.Duration, 0},
		{"conntrack.tcpCloseWaitTimeout", k.Conntrack.TCPCloseWaitTimeout.Duration, 0},
		{"conntrack.udpTimeout", k.Conntrack.UDPTimeout.Duration, 0},
		{"conntrack.udpStreamTimeout", k.Conntrack.UDPStreamTimeout.Duration, 0},
		{"configSyncPeriod", k.ConfigSyncPeriod.Duration, 1},
	} {
		switch {
		case t.value >= t.least:
		case t.least > 0:
			errs = append(errs, c.wrong(t.path, t.value, "it must be more than 0"))
		default:
			errs = append(errs, c.wrong(t.path, t.value, "it must not be less than 0"))
		}
	}
	if b := c.block(); b.minSyncPeriod > b.syncPeriod {
		errs = append(errs, c.wrong(b.name+".minSyncPeriod", b.minSyncPeriod, "it must not be more than syncPeriod, which is "+b.syncPeriod.String()))
	}
	return errs
}

func (c *Config) checkIPVS() []error {
	var errs []error
	k := &c.KubeProxy.IPVS
	if k.Scheduler != "" && !slices.Contains(dataplane.Schedulers(), k.Scheduler) {
		errs = append(errs, c.wrong("ipvs.scheduler", k.Scheduler, "it can be "+strings.Join(dataplane.Schedulers(), ", ")))
	}
	for _, cidr := range k.ExcludeCIDRs {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			errs = append(errs, c.wrong("ipvs.excludeCIDRs", cidr, "it must be an address range such as 10.96.0.0/16"))
		}
	}
	for _, t := range []struct {
		path  string
		value time.Duration
	}{{"ipvs.tcpTimeout", k.TCPTimeout.Duration}, {"ipvs.tcpFinTimeout", k.TCPFinTimeout.Duration}, {"ipvs.udpTimeout", k.UDPTimeout.Duration}} {
		if t.value%time.Second != 0 {
			errs = append(errs, c.wrong(t.path, t.value, "it must be whole seconds"))
		}
	}
	return errs
}

func (c *Config) checkAddresses() []error {
	var errs []error
	k := &c.KubeProxy
	if _, ok := facts.ParseAddr(k.BindAddress); !ok {
		errs = append(errs, c.wrong("bindAddress", k.BindAddress, "it must be an IP address"))
	}
	for _, a := range []struct{ path, addr string }{
		{"healthzBindAddress", k.HealthzBindAddress}, {"metricsBindAddress", k.MetricsBindAddress},
	} {
		if _, err := netip.ParseAddrPort(a.addr); a.addr != "" && err != nil {
			errs = append(errs, c.wrong(a.path, a.addr, "it must be an IP address and a port, as in 127.0.0.1:10249"))
		}
	}
	cidrs, ok := c.clusterCIDRs()
	if !ok || len(cidrs) > 2 {
		errs = append(errs, c.wrong("clusterCIDR", k.ClusterCIDR, "it must be an address range such as 10.244.0.0/16, or one for each family with a comma between"))
	}
	modes := []watcher.DetectLocalMode{watcher.ClusterCIDR, watcher.NodeCIDR, watcher.BridgeInterface, watcher.InterfaceNamePrefix}
	switch mode := watcher.DetectLocalMode(k.DetectLocalMode); {
	case mode != "" && !slices.Contains(modes, mode):
		errs = append(errs, c.wrong("detectLocalMode", mode, "it can be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"))
	case mode == watcher.BridgeInterface && k.DetectLocal.BridgeInterface == "":
		errs = append(errs, c.wrong("detectLocal.bridgeInterface", "", "detectLocalMode BridgeInterface needs the name of an interface"))
	case mode == watcher.InterfaceNamePrefix && k.DetectLocal.InterfaceNamePrefix == "":
		errs = append(errs, c.wrong("detectLocal.interfaceNamePrefix", "", "detectLocalMode InterfaceNamePrefix needs the start of a name"))
	}
	return errs
}

// clusterCIDRs parses clusterCIDR.
func (c *Config) clusterCIDRs() (cidrs []netip.Prefix, ok bool) {
	for _, word := range strings.FieldsFunc(c.KubeProxy.ClusterCIDR, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, ok := facts.ParsePrefix(word)
		if !ok {
			return nil, false
		}
		cidrs = append(cidrs, p)
	}
	return cidrs, true
}

// checkSource finds what is wrong with where Services come from.
func (c *Config) checkSource() []error {
	var errs []error
	for _, addr := range c.Switchyard.APIServers {
		host, port, err := net.SplitHostPort(addr)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || host == "" || e != nil || n == 0 {
			errs = append(errs, c.wrong(ownKind+".apiServers", addr, "it must be a host and a port, such as 192.0.2.1:6443 or [2001:db8::1]:6443"))
		}
	}
	dir := c.Switchyard.Manifests
	if dir == "" {
		return errs
	}
	if c.said["clientConnection.kubeconfig"] != "" || c.Master != "" || len(c.Switchyard.APIServers) > 0 {
		errs = append(errs, errors.New("--manifests excludes --kubeconfig, --master and --apiserver: give one source of Services"))
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		errs = append(errs, c.wrong(ownKind+".manifests", dir, "it must be a directory that is there"))
	}
	return errs
}
