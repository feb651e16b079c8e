package config

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// gatesText is a list and no dependency: the gates are in packages that bring
// the API server with them.
//
//go:embed gates.txt
var gatesText string

// gate is what is known of a feature gate.
type gate struct {
	locked *bool // the one value that it can have; nil: either
}

func knownGates() map[string]gate {
	gates := map[string]gate{"AllAlpha": {}, "AllBeta": {}}
	for line := range strings.Lines(gatesText) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, isLocked := strings.Cut(strings.TrimSpace(line), " ")
		g := gate{}
		if isLocked {
			g.locked = new(value == "true")
		}
		gates[name] = g
	}
	return gates
}

// checkGates finds gates that kube-proxy would not take, in its words.
func (c *Config) checkGates() []error {
	var errs []error
	known := knownGates()
	for _, name := range slices.Sorted(maps.Keys(c.KubeProxy.FeatureGates)) {
		value := c.KubeProxy.FeatureGates[name]
		g, ok := known[name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s: unrecognized feature gate: %s", c.name("featureGates"), name))
		case g.locked != nil && *g.locked != value:
			errs = append(errs, fmt.Errorf("%s: cannot set feature gate %s to %t, feature is locked to %t",
				c.name("featureGates"), name, value, *g.locked))
		}
	}
	return errs
}

// Gate is whether a feature gate is on that this agent knows to heed.
func (c *Config) Gate(name string) bool {
	on, said := c.KubeProxy.FeatureGates[name]
	return on || !said // all of them are on unless said otherwise
}

// HeededGates are the feature gates that change what the agent does, with the
// stage that Kubernetes v1.37 gives them ("": generally available).
func HeededGates() map[string]string {
	return map[string]string{gateExternalIPs: "", gateIPVS: "DEPRECATED", GateFlagz: "BETA", GateStatusz: "BETA"}
}

// The feature gates that the agent heeds.
const (
	gateExternalIPs = "AllowServiceExternalIPs"
	gateIPVS        = "KubeProxyIPVS"
	// GateFlagz and GateStatusz serve the pages of those names.
	GateFlagz   = "ComponentFlagz"
	GateStatusz = "ComponentStatusz"
)

// gatesFlag reads --feature-gates.
type gatesFlag struct{ gates *map[string]bool }

// Set implements pflag.Value.
func (f gatesFlag) Set(s string) error {
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		on, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("%q must be NAME=true or NAME=false", pair)
		}
		if *f.gates == nil {
			*f.gates = map[string]bool{}
		}
		(*f.gates)[strings.TrimSpace(name)] = on
	}
	return nil
}

// String implements pflag.Value.
func (f gatesFlag) String() string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(*f.gates)) {
		pairs = append(pairs, fmt.Sprintf("%s=%t", name, (*f.gates)[name]))
	}
	return strings.Join(pairs, ",")
}

// Type implements pflag.Value.
func (gatesFlag) Type() string { return "NAME=bool,..." }
