package cluster

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"text/template"
)

//go:embed files/containerd.toml
var containerdTemplate string

//go:embed files/kubelet.yaml
var kubeletTemplate string

//go:embed files/nodes.yaml
var nodesTemplate string

//go:embed files/kubeconfig.yaml
var kubeconfigTemplate string

// render fills a template; the templates are part of the program, so that an
// error in one is found by the tests.
func render(name, text string, data any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// cniConfig is a node's pod network: one veth pair and host routes per pod. So
// traffic between two pods of a node is routed, not bridged, and passes the
// node's rules without the bridge netfilter module.
func cniConfig(n Node) ([]byte, error) {
	type rng struct {
		Subnet netip.Prefix `json:"subnet"`
	}
	type route struct {
		Dst string `json:"dst"`
	}
	return json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0",
		"name":       "lab",
		"plugins": []any{map[string]any{
			"type": "ptp",
			"mtu":  1500,
			"ipam": map[string]any{
				"type":   "host-local",
				"ranges": [][]rng{{{n.Pods4}}, {{n.Pods6}}},
				"routes": []route{{"0.0.0.0/0"}, {"::/0"}},
			},
		}},
	}, "", "  ")
}

// user is who a bearer token stands for.
type user struct {
	Name   string
	Groups string
	token  string
}

// tokenFile is what --token-auth-file wants: token,user,uid,"groups".
func tokenFile(users []user) []byte {
	var out bytes.Buffer
	for _, u := range users {
		fmt.Fprintf(&out, "%s,%s,%s", u.token, u.Name, u.Name)
		if u.Groups != "" {
			fmt.Fprintf(&out, ",%q", u.Groups)
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}
