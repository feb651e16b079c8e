package config

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"
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
	fs.StringVar(&o.File, "config", "", "file with a KubeProxyConfiguration, a SwitchyardConfiguration, or both; "+
		"as in kube-proxy, most of kube-proxy's own flags are then ignored")
	fs.StringVar(&o.OwnFile, "switchyard-config", "", "file with a SwitchyardConfiguration, where --config does not have it")
	fs.StringVar(&o.WriteTo, "write-config-to", "", "write the configuration, with all defaults, to this file and end")
	fs.BoolVar(&o.Cleanup, "cleanup", false,
		"remove what Switchyard and kube-proxy put into the kernel and end, as switchyard cleanup --kube-proxy does")
	fs.BoolVar(&o.InitOnly, "init-only", false, "set what needs full root privileges and end, so that the agent can run with fewer")
	for _, s := range o.given.settings(o.Backends) {
		if s.flag != "" {
			s.addFlag(fs)
		}
	}
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

// AddBackendFlags adds the flags that commands need which change the kernel and
// run no agent.
func (o *Options) AddBackendFlags(fs *pflag.FlagSet) {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(all)
	for _, name := range []string{"config", "switchyard-config"} {
		fs.AddFlag(all.Lookup(name))
	}
	for _, s := range o.given.settings(nil) {
		if s.kernel && s.flag != "" {
			fs.AddFlag(all.Lookup(s.flag))
		}
	}
	o.flags = fs
}

// Complete returns the Config that the parsed flags and their files make. It
// reads the files each time that it is called.
func (o *Options) Complete() (*Config, error) {
	if o.File == "" && o.OwnFile == "" {
		c := o.given
		o.flagsInto(c, false)
		o.flagsAlone(c)
		c.lowerHostname()
		return c, nil
	}
	c := &Config{said: origins{}}
	have := documents{}
	files := slices.DeleteFunc([]string{o.File, o.OwnFile}, func(f string) bool { return f == "" })
	c.text = contents(files) // before they are read: a change since then is seen
	for _, file := range files {
		if err := c.load(file, &have); err != nil {
			return nil, err
		}
	}
	c.fillDefaults()
	if !have.kubeProxy {
		o.given.KubeProxy.DeepCopyInto(&c.KubeProxy)
	}
	o.flagsInto(c, have.kubeProxy)
	if !have.kubeProxy {
		o.flagsAlone(c)
	}
	c.lowerHostname()
	return c, nil
}

// flagsInto sets in c what the given flags set. file reports whether c's
// settings of kube-proxy are a file's, beside which most flags do not count.
func (o *Options) flagsInto(c *Config, file bool) {
	var ignored []string
	given := o.given.settings(nil)
	for i, s := range c.settings(nil) {
		switch {
		case s.flag == "" || !o.flags.Changed(s.flag):
		case file && !s.besideFile:
			ignored = append(ignored, "--"+s.flag)
		default:
			c.said[s.path] = "--" + s.flag
			s.field().Set(given[i].field())
		}
	}
	if len(ignored) > 0 {
		c.Warnings = append(c.Warnings,
			"these flags do not count beside a "+kubeProxyKind+", as in kube-proxy: "+strings.Join(ignored, ", "))
	}
}

// flagsAlone does to kube-proxy's settings what kube-proxy does if they are the
// flags'.
func (o *Options) flagsAlone(c *Config) {
	o.deprecatedPorts(c)
	c.modeOfFlags()
}

// Flags returns the value of every flag.
func (o *Options) Flags() map[string]string {
	all := map[string]string{}
	o.flags.VisitAll(func(f *pflag.Flag) { all[f.Name] = f.Value.String() })
	return all
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
