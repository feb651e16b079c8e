// Package config turns flags and kube-proxy's configuration into the agent's
// settings.
//
// It reads kube-proxy's configuration (kubeproxy.config.k8s.io/v1alpha1) as
// kube-proxy does, and a document of our own for what only Switchyard has. Flags
// fill the same two documents, so that there is one way from what an operator
// sets to what the agent does.
//
// A setting is a row in table.go: its flag, its path in a document, its value,
// default, rule and help. Flags, defaults, validation and messages about
// settings that mean nothing all read the rows.
package config

import (
	"fmt"
	"os"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"
)

// Names of the two documents.
const (
	kubeProxyVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kubeProxyKind    = "KubeProxyConfiguration"
	ownVersion       = "config.switchyard.io/v1alpha1"
	ownKind          = "SwitchyardConfiguration"
)

// Config is what the operator said, with the defaults of what was left unsaid.
type Config struct {
	KubeProxy  kubeproxy.KubeProxyConfiguration
	Switchyard Switchyard
	Master     string // address of the API server, in place of the kubeconfig's; a flag only
	LockDir    string // of the locks that keep two processes from programming one network namespace; a flag only

	// Warnings are what was wrong and let pass, for the log.
	Warnings []string
	// Files are those that were read.
	Files []string

	text []byte // tells whether Files changed
	said origins
}

// Switchyard is the document for what kube-proxy does not have.
type Switchyard struct {
	metav1.TypeMeta `json:""`

	// Backend is the kernel mechanism; "": what the mode of the
	// KubeProxyConfiguration says.
	Backend string `json:"backend"`
	// SocketLB is whose sockets are translated on top of the backend; "": as auto
	// for backend ebpf, as off for the others.
	SocketLB string `json:"socketLB"`
	// MinSyncInterval is the least time between two Syncs of the kernel; 0: the
	// minSyncPeriod of the KubeProxyConfiguration where that is not its default,
	// else four times what the last Sync took, at most 20 ms; with iptables up to 1 s
	// (dataplane.SyncerConfig).
	MinSyncInterval metav1.Duration `json:"minSyncInterval"`
	// VerifyInterval is how often the kernel is compared with what is wanted, and
	// repaired where it differs.
	VerifyInterval metav1.Duration `json:"verifyInterval"`
	// APIServers are addresses, host and port, to connect to for the API server, in
	// place of the kubeconfig's or the Service's; where one fails, the next.
	APIServers []string `json:"apiServers"`
	// TakeOver ends what another backend or kube-proxy left on the node, once all
	// Services are forwarded.
	TakeOver bool `json:"takeOver"`
	// Manifests is a directory of Services, EndpointSlices and Nodes, in place of
	// an API server.
	Manifests string `json:"manifests"`

	// Socket is the Unix socket where the commands that ask an agent are answered.
	Socket string `json:"socket"`

	EBPF     EBPF     `json:"ebpf"`
	IPTables IPTables `json:"iptables"`
	IPVS     IPVS     `json:"ipvs"`
}

// EBPF is what only the translation of sockets is told, as ebpf.Options.
type EBPF struct {
	CgroupRoot   string `json:"cgroupRoot"`
	PinDir       string `json:"pinDir"`
	MaxFrontends int    `json:"maxFrontends"`
	MaxEndpoints int    `json:"maxEndpoints"`
	MaxAffinity  int    `json:"maxAffinity"`

	// Of versions that translated packets by eBPF as well; see Deprecated.
	SocketLB        *bool `json:"socketLB,omitempty"`
	MaxSourceRanges int   `json:"maxSourceRanges,omitempty"`
	MaxConnections  int   `json:"maxConnections,omitempty"`
}

// IPTables is what only the iptables backend is told.
type IPTables struct {
	Mode string `json:"mode"` // auto, nft or legacy
}

// IPVS is what only the ipvs backend is told and kube-proxy's is not.
type IPVS struct {
	// DrainTimeout is how long connections to a removed endpoint may go on.
	DrainTimeout metav1.Duration `json:"drainTimeout"`
}

// Default is a Config of which nothing was said.
func Default() *Config {
	c := &Config{said: origins{}}
	c.fillDefaults()
	return c
}

// origins is how to name a field in a message, by its path: as the flag that
// set it, or as a field of a file.
type origins map[string]string

// name is how to name a field that a message is about.
func (c *Config) name(path string) string {
	if n := c.said[path]; n != "" {
		return n
	}
	if len(c.Files) > 0 {
		return c.Files[0] + ": " + path
	}
	return path
}

// wrong is the error of a field's value.
func (c *Config) wrong(path string, value any, allowed string) error {
	return fmt.Errorf("%s is %q; %s", c.name(path), fmt.Sprint(value), allowed)
}

// Documents is both documents, by API group.
func (c *Config) Documents() map[string]any {
	return map[string]any{
		"kubeproxy.config.k8s.io": &c.KubeProxy,
		"config.switchyard.io":    &c.Switchyard,
	}
}

// Write writes both documents, kube-proxy's first: kube-proxy itself reads just
// that one, so that the file serves for the way back too.
func (c *Config) Write(file string) error {
	var text []byte
	for i, doc := range []any{&c.KubeProxy, &c.Switchyard} {
		y, err := yaml.Marshal(doc)
		if err != nil {
			return fmt.Errorf("encoding the configuration: %w", err)
		}
		if i > 0 {
			text = append(text, "---\n"...)
		}
		text = slices.Concat(text, y)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}
