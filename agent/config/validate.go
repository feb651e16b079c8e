package config

import (
	"errors"
	"slices"
	"strings"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/switchyard-io/switchyard/watcher"
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
	errs := c.checkGates()
	for _, s := range c.settings(backends) {
		if s.must == nil {
			continue
		}
		for _, v := range s.values() {
			if allowed := s.must(v); allowed != "" {
				errs = append(errs, c.wrong(s.path, v, allowed))
			}
		}
	}
	return errors.Join(append(errs, c.checkMode(backends), c.checkPeriods(), c.checkDetection(), c.checkSource())...)
}

// checkMode finds a mode that no backend stands for. It counts if --backend is
// not given.
func (c *Config) checkMode(backends []string) error {
	allowed := "it can be " + strings.Join(backends, ", ")
	switch mode := c.KubeProxy.Mode; {
	case c.Switchyard.Backend != "":
		return nil
	case mode == modeIPVS && !c.Gate(gateIPVS):
		return c.wrong("mode", mode, "the feature gate "+gateIPVS+" is off")
	case mode == "" || slices.Contains(backends, string(mode)):
		return nil
	case slices.Contains([]kubeproxy.ProxyMode{modeIPTables, modeIPVS, modeNFTables}, mode):
		return c.wrong("mode", mode,
			"this mode of kube-proxy has no backend here yet; "+allowed+"; --backend chooses whatever the mode is")
	default:
		return c.wrong("mode", mode, allowed)
	}
}

// checkPeriods compares the two periods of the mode that counts.
func (c *Config) checkPeriods() error {
	if b := c.block(); b.minSyncPeriod > b.syncPeriod {
		return c.wrong(b.name+".minSyncPeriod", b.minSyncPeriod, "it must not be more than syncPeriod, which is "+b.syncPeriod.String())
	}
	return nil
}

// checkDetection finds a way to detect pods that lacks what it goes by.
func (c *Config) checkDetection() error {
	d := &c.KubeProxy.DetectLocal
	switch mode := watcher.DetectLocalMode(c.KubeProxy.DetectLocalMode); {
	case mode == watcher.BridgeInterface && d.BridgeInterface == "":
		return c.wrong("detectLocal.bridgeInterface", "", "detectLocalMode BridgeInterface needs the name of an interface")
	case mode == watcher.InterfaceNamePrefix && d.InterfaceNamePrefix == "":
		return c.wrong("detectLocal.interfaceNamePrefix", "", "detectLocalMode InterfaceNamePrefix needs the start of a name")
	}
	return nil
}

// checkSource finds a second source of Services.
func (c *Config) checkSource() error {
	if c.Switchyard.Manifests == "" {
		return nil
	}
	if c.said["clientConnection.kubeconfig"] != "" || c.Master != "" || len(c.Switchyard.APIServers) > 0 {
		return errors.New("--manifests excludes --kubeconfig, --master and --apiserver: give one source of Services")
	}
	return nil
}
