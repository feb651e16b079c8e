package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Unheeded lists what was set and has no meaning here, in plain words.
func (c *Config) Unheeded() []string {
	var out []string
	unset, rows := Default(), c.settings(nil)
	for _, path := range differing(&unset.KubeProxy, &c.KubeProxy) {
		if gate, ok := strings.CutPrefix(path, "featureGates."); ok {
			if _, heeded := HeededGates()[gate]; !heeded {
				out = append(out, path+": nothing here depends on it")
			}
			continue
		}
		for _, s := range rows {
			if s.idle != "" && s.covers(path) {
				out = append(out, path+": "+s.idle)
			}
		}
	}
	if mode := c.KubeProxy.Mode; mode != "" && c.Switchyard.Backend != "" && string(mode) != c.Switchyard.Backend {
		out = append(out, fmt.Sprintf("mode: %s is %q", c.name(ownKind+".backend"), c.Switchyard.Backend))
	}
	return out
}

// Deprecated lists the settings of older versions that were given, and what
// becomes of them.
func (c *Config) Deprecated() []string {
	var out []string
	for _, s := range c.settings(nil) {
		if s.deprecated != "" && !s.field().IsZero() {
			out = append(out, c.name(s.path)+": "+s.deprecated)
		}
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

// Changes returns the fields in which next differs: those that a running agent
// takes up, and those for which it must be started again.
func (c *Config) Changes(next *Config) (live, restart []string) {
	rows := c.settings(nil)
	for _, path := range differing(&c.KubeProxy, &next.KubeProxy) {
		if slices.ContainsFunc(rows, func(s setting) bool { return s.live && s.covers(path) }) {
			live = append(live, path)
		} else {
			restart = append(restart, path)
		}
	}
	for _, path := range differing(&c.Switchyard, &next.Switchyard) {
		restart = append(restart, ownKind+"."+path)
	}
	return live, restart
}
