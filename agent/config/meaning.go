package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// meaningless is every field of a KubeProxyConfiguration that says nothing to
// this agent, and why. A name stands for all below it.
func meaningless() map[string]string {
	return map[string]string{
		"winkernel":                   "this agent is for Linux",
		"windowsRunAsService":         "this agent is for Linux",
		"portRange":                   "kube-proxy does not use it either",
		"configSyncPeriod":            "nothing is refreshed by the clock; watches tell of every change",
		"showHiddenMetricsForVersion": "no metric is hidden",
		"logging.flushFrequency":      "each line is written at once",
		"logging.vmodule":             "the log has one level for all files",
		"logging.options":             "the log is one stream to stderr, without a buffer",
	}
}

// Unheeded lists what was said that has no meaning here, in plain words.
func (c *Config) Unheeded() []string {
	var out []string
	why := meaningless()
	unsaid := Default()
	for _, path := range differing(&unsaid.KubeProxy, &c.KubeProxy) {
		if gate, ok := strings.CutPrefix(path, "featureGates."); ok {
			if !slices.Contains([]string{gateExternalIPs, gateIPVS, GateFlagz, GateStatusz}, gate) {
				out = append(out, path+": nothing here depends on it")
			}
			continue
		}
		for field := path; ; {
			if reason, ok := why[field]; ok {
				out = append(out, path+": "+reason)
				break
			}
			i := strings.LastIndexByte(field, '.')
			if i < 0 {
				break
			}
			field = field[:i]
		}
	}
	if mode := c.KubeProxy.Mode; mode != "" && c.Switchyard.Backend != "" && string(mode) != c.Switchyard.Backend {
		out = append(out, fmt.Sprintf("mode: %s is %q", c.name(ownKind+".backend"), c.Switchyard.Backend))
	}
	return out
}

// differing is the paths of the fields in which two documents differ, sorted.
func differing(a, b any) []string {
	in, other := flatten(a), flatten(b)
	paths := map[string]bool{}
	for p, v := range in {
		paths[p] = other[p] != v
	}
	for p, v := range other {
		paths[p] = in[p] != v
	}
	maps.DeleteFunc(paths, func(_ string, differs bool) bool { return !differs })
	return slices.Sorted(maps.Keys(paths))
}

// flatten gives each value of a document under its path. An empty value is as
// good as none.
func flatten(doc any) map[string]string {
	out := map[string]string{}
	text, err := json.Marshal(doc)
	var tree any
	if err == nil {
		err = json.Unmarshal(text, &tree)
	}
	if err != nil {
		panic(err) // our own types, which decoding just made
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		m, ok := v.(map[string]any)
		if !ok {
			if s := fmt.Sprint(v); s != "<nil>" && s != "" && s != "[]" {
				out[path] = s
			}
			return
		}
		for k, e := range m {
			walk(strings.TrimPrefix(path+"."+k, "."), e)
		}
	}
	walk("", tree)
	return out
}

// changeable is the fields that a running agent takes up.
func changeable() []string {
	return []string{"logging.verbosity", "conntrack", "oomScoreAdj"}
}

// Changes is the fields in which next differs: those that a running agent takes
// up, and those for which it must be started anew.
func (c *Config) Changes(next *Config) (live, anew []string) {
	for _, path := range differing(&c.KubeProxy, &next.KubeProxy) {
		if slices.ContainsFunc(changeable(), func(f string) bool { return path == f || strings.HasPrefix(path, f+".") }) {
			live = append(live, path)
		} else {
			anew = append(anew, path)
		}
	}
	for _, path := range differing(&c.Switchyard, &next.Switchyard) {
		anew = append(anew, ownKind+"."+path)
	}
	return live, anew
}
