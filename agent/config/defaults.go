package config

import (
	"cmp"
	"net/netip"

	logsapi "k8s.io/component-base/logs/api/v1"
)

// kube-proxy's ports.
const (
	healthzPort = 10256
	metricsPort = 10249
)

// fillDefaults sets what nobody set; kube-proxy's settings to kube-proxy's
// defaults (KUBE-PROXY §2.1).
func (c *Config) fillDefaults() {
	k, s := &c.KubeProxy, &c.Switchyard
	k.APIVersion, k.Kind = kubeProxyVersion, kubeProxyKind
	s.APIVersion, s.Kind = ownVersion, ownKind
	logsapi.SetRecommendedLoggingConfiguration(&k.Logging)
	for _, row := range c.settings(nil) {
		row.fill()
	}
	// As in kube-proxy, an address that a file leaves empty gets its default: a
	// file cannot switch a server off.
	everywhere, here := "0.0.0.0", "127.0.0.1"
	if a, err := netip.ParseAddr(k.BindAddress); err == nil && a.Is6() {
		everywhere, here = "::", "::1"
	}
	k.HealthzBindAddress = withPort(cmp.Or(k.HealthzBindAddress, everywhere), healthzPort)
	k.MetricsBindAddress = withPort(cmp.Or(k.MetricsBindAddress, here), metricsPort)
}

// withPort adds a port to an address that has none. What is no address stays as
// it is, for validation to find.
func withPort(addr string, port uint16) string {
	if a, err := netip.ParseAddr(addr); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return addr
}
