package config

import (
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/lock"
)

// kube-proxy's ports.
const (
	healthzPort = 10256
	metricsPort = 10249
)

// fillDefaults says what was left unsaid.
func (c *Config) fillDefaults() {
	fillKubeProxy(&c.KubeProxy)
	fill(&c.LockDir, lock.Dir)
	s := &c.Switchyard
	s.APIVersion, s.Kind = ownVersion, ownKind
	fill(&s.VerifyInterval.Duration, time.Minute)
	fill(&s.Socket, inspect.DefaultSocket)
	fill(&s.IPTables.Mode, "auto")
	unset := catalog.DefaultOptions()
	e := unset.EBPF
	fill(&s.EBPF.PinDir, e.PinDir)
	fill(&s.EBPF.MaxFrontends, e.MaxFrontends)
	fill(&s.EBPF.MaxEndpoints, e.MaxEndpoints)
	fill(&s.EBPF.MaxAffinity, e.MaxAffinity)
	fill(&s.IPVS.DrainTimeout.Duration, unset.IPVS.DrainTimeout)
}

// fillKubeProxy fills in kube-proxy's defaults (KUBE-PROXY §2.1). As there, an
// address that a file leaves empty gets its default: a file cannot switch a
// server off.
func fillKubeProxy(k *kubeproxy.KubeProxyConfiguration) {
	k.APIVersion, k.Kind = kubeProxyVersion, kubeProxyKind
	fill(&k.ClientConnection.ContentType, "application/vnd.kubernetes.protobuf")
	fill(&k.ClientConnection.QPS, 5)
	fill(&k.ClientConnection.Burst, 10)
	logsapi.SetRecommendedLoggingConfiguration(&k.Logging)

	fill(&k.BindAddress, "0.0.0.0")
	everywhere, here := "0.0.0.0", "127.0.0.1"
	if a, err := netip.ParseAddr(k.BindAddress); err == nil && a.Is6() {
		everywhere, here = "::", "::1"
	}
	fill(&k.HealthzBindAddress, everywhere)
	fill(&k.MetricsBindAddress, here)
	k.HealthzBindAddress = withPort(k.HealthzBindAddress, healthzPort)
	k.MetricsBindAddress = withPort(k.MetricsBindAddress, metricsPort)

	fillPointer(&k.IPTables.MasqueradeBit, 14)
	fillPointer(&k.IPTables.LocalhostNodePorts, true)
	fill(&k.IPTables.SyncPeriod.Duration, 30*time.Second)
	fill(&k.IPTables.MinSyncPeriod.Duration, time.Second)
	fill(&k.IPVS.SyncPeriod.Duration, 30*time.Second)
	fillPointer(&k.NFTables.MasqueradeBit, 14)
	fill(&k.NFTables.SyncPeriod.Duration, 30*time.Second)
	fill(&k.NFTables.MinSyncPeriod.Duration, time.Second)

	fillPointer(&k.OOMScoreAdj, -999)
	fillPointer(&k.Conntrack.MaxPerCore, 32*1024)
	fillPointer(&k.Conntrack.Min, 128*1024)
	fillPointer(&k.Conntrack.TCPEstablishedTimeout, metav1.Duration{Duration: 24 * time.Hour})
	fillPointer(&k.Conntrack.TCPCloseWaitTimeout, metav1.Duration{Duration: time.Hour})
	fill(&k.ConfigSyncPeriod.Duration, 15*time.Minute)
}

func fill[T comparable](v *T, value T) {
	var unsaid T
	if *v == unsaid {
		*v = value
	}
}

func fillPointer[T any](v **T, value T) {
	if *v == nil {
		*v = &value
	}
}

// withPort gives an address that is without a port its own. What is no address
// stays as it is, for validation to find.
func withPort(addr string, port uint16) string {
	if a, err := netip.ParseAddr(addr); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return addr
}
