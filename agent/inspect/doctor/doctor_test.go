package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
)

// files of a machine where all is well.
func healthy() map[string]string {
	return map[string]string{
		"/proc/sys/kernel/osrelease":                          "6.12.1-amd64",
		"/proc/mounts":                                        "none /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n",
		"/proc/self/status":                                   "Name:\tswitchyard\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n",
		"/proc/net/ip_vs":                                     "IP Virtual Server version 1.2.1 (size=4096)\n",
		"/proc/sys/net/netfilter/nf_conntrack_max":            "262144\n",
		"/proc/sys/net/netfilter/nf_conntrack_count":          "12\n",
		"/proc/sys/net/ipv4/ip_forward":                       "1\n",
		"/proc/sys/net/ipv6/conf/all/forwarding":              "1\n",
		"/proc/sys/net/bridge/bridge-nf-call-iptables":        "1\n",
		"/proc/sys/net/ipv4/conf/all/rp_filter":               "2\n",
		"/proc/sys/net/netfilter/nf_conntrack_acct":           "1\n",
		"/proc/12/comm":                                       "kubelet\n",
		"/proc/net/ip_tables_names":                           "filter\nnat\n",
		"/proc/sys/net/bridge/bridge-nf-call-ip6tables":       "1\n",
		"/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal": "0\n",
	}
}

// machine is a System of files and of commands' outputs.
type machine struct {
	files    map[string]string
	commands map[string]string
	left     []string          // by a kube-proxy
	rival    dataplane.Finding // that a backend finds; Found "": none
}

func (m machine) system(t *testing.T) System {
	root := t.TempDir()
	for name, text := range m.files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return System{
		Root: root,
		Run: func(_ context.Context, name string, args ...string) (string, error) {
			out, ok := m.commands[strings.Join(append([]string{name}, args...), " ")]
			if !ok {
				return "", os.ErrNotExist
			}
			return out, nil
		},
		KubeProxy: func(context.Context) ([]string, error) { return m.left, nil },
	}
}

// drivers are the binary's, which need what they do need, and otherwise do not look at
// this machine.
func (m machine) drivers() []dataplane.Driver {
	all := catalog.Drivers(catalog.Options{})
	for i, d := range all {
		var needs []dataplane.Need
		for _, n := range d.Needs {
			if n.Kind == dataplane.Rival {
				n.Look = func(context.Context, dataplane.Machine) (dataplane.Finding, bool) {
					return m.rival, m.rival.Found != ""
				}
			}
			if n.Kind != dataplane.Neighbour {
				needs = append(needs, n)
			}
		}
		all[i] = dataplane.Driver{Name: d.Name, Needs: needs, Probe: func(context.Context, dataplane.Config) error { return nil }}
	}
	return all
}

// TestExamine spoils one thing of a healthy machine at a time.
func TestExamine(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*machine)
		want  string // a check that is not ok; "": none is
	}{
		{"all is well", func(*machine) {}, ""},
		{"no forwarding", func(m *machine) { m.files["/proc/sys/net/ipv4/ip_forward"] = "0" }, "problem net.ipv4.ip_forward: 0"},
		{"bridges pass netfilter by", func(m *machine) { m.files["/proc/sys/net/bridge/bridge-nf-call-iptables"] = "0" }, "problem net.bridge.bridge-nf-call-iptables: 0"},
		{"strict reverse path", func(m *machine) { m.files["/proc/sys/net/ipv4/conf/all/rp_filter"] = "1" }, "note net.ipv4.conf.all.rp_filter: 1"},
		{"bytes are not counted", func(m *machine) { m.files["/proc/sys/net/netfilter/nf_conntrack_acct"] = "0" }, "note net.netfilter.nf_conntrack_acct: 0"},
		{"an old kernel", func(m *machine) { m.files["/proc/sys/kernel/osrelease"] = "5.4.0-generic" }, "problem version: 5.4.0-generic"},
		{"a kernel without cookies of namespaces", func(m *machine) { m.files["/proc/sys/kernel/osrelease"] = "5.10.0-18-amd64" }, "note version: 5.10.0-18-amd64"},
		{"no CAP_SYS_ADMIN", func(m *machine) { m.files["/proc/self/status"] = "CapEff:\t000001ffffdfffff\n" }, "note CAP_SYS_ADMIN: no"},
		{"no cgroup v2", func(m *machine) { m.files["/proc/mounts"] = "bpf /sys/fs/bpf bpf rw 0 0" }, "problem cgroup v2: not mounted"},
		{"a bpf file system elsewhere", func(m *machine) {
			m.files["/proc/mounts"] = "none /c cgroup2 rw 0 0\nbpf /elsewhere bpf rw 0 0"
		}, "problem bpf file system: not at /sys/fs/bpf, but at /elsewhere"},
		{"no IPVS", func(m *machine) { delete(m.files, "/proc/net/ip_vs") }, "note IPVS: this kernel has none, as far as can be seen"},
		{"IPVS as a module", func(m *machine) {
			delete(m.files, "/proc/net/ip_vs")
			m.files["/lib/modules/6.12.1-amd64/modules.dep"] = "kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/net/netfilter/nf_conntrack.ko.xz\n"
		}, ""},
		{"no CAP_BPF", func(m *machine) { m.files["/proc/self/status"] = "CapEff:\t0000007fffffffff\n" }, "problem CAP_BPF: no"},
		{"no iptables at all", func(m *machine) { m.commands = nil }, "problem iptables-nft: not there"},
		{"kube-proxy runs", func(m *machine) { m.files["/proc/4711/comm"] = "kube-proxy\n" }, "problem kube-proxy: it runs (process 4711)"},
		{"what kube-proxy left", func(m *machine) { m.left = []string{"2 chains of iptables-nft, IPv4", "device kube-ipvs0"} },
			"problem kube-proxy's rules: 2 chains of iptables-nft, IPv4; device kube-ipvs0"},
		{"another proxy's socket programs", func(m *machine) {
			m.rival = dataplane.Finding{Lack: dataplane.Serious, Found: "cil_sock4_connect on cgroup /c", Advice: "switch it off"}
		}, "problem socket programs: cil_sock4_connect on cgroup /c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machine{files: healthy(), commands: map[string]string{}}
			for _, name := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
				m.commands[name+" --version"] = name + " v1.8.9\n"
			}
			c.spoil(&m)
			r := Examine(t.Context(), m.system(t), m.drivers(), dataplane.Config{})
			var got []string
			for _, check := range r.Checks {
				if check.State == OK {
					continue
				}
				got = append(got, fmt.Sprintf("%s %s: %s", check.State, check.Name, check.Found))
				if check.Advice == "" && !strings.HasPrefix(check.Name, "ip") {
					t.Errorf("%s: no advice", check.Name)
				}
			}
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) == 0 || got[0] != c.want) {
				t.Errorf("got %q, want first %q", got, c.want)
			}
		})
	}
}

func TestBackends(t *testing.T) {
	driver := func(name string, err error) dataplane.Driver {
		return dataplane.Driver{Name: name, Probe: func(context.Context, dataplane.Config) error { return err }}
	}
	lacking := fmt.Errorf("the kernel has no ip_vs: %w", dataplane.ErrUnsupported)
	half := dataplane.Driver{Name: "half", Probe: func(_ context.Context, cfg dataplane.Config) error {
		_, err := cfg.Usable(func(f dataplane.Family) error {
			if f == dataplane.IPv6 {
				return lacking
			}
			return nil
		})
		return err
	}}
	both := dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}}
	r := Examine(t.Context(), machine{files: healthy()}.system(t), []dataplane.Driver{half, driver("ipvs", lacking)}, both)
	if want := []Backend{{Name: "half", Works: true, Auto: true, Reason: "IPv6: the kernel has no ip_vs"}, {Name: "ipvs", Reason: "the kernel has no ip_vs"}}; fmt.Sprint(r.Backends) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", r.Backends, want)
	}
	r = Examine(t.Context(), machine{files: healthy()}.system(t), []dataplane.Driver{half, driver("iptables", nil)}, both)
	if !r.Backends[1].Auto || r.Backends[0].Auto {
		t.Errorf("--backend=auto should take what works for all families: %+v", r.Backends)
	}
	r = Examine(t.Context(), machine{files: healthy()}.system(t),
		[]dataplane.Driver{driver("ipvs", lacking), driver("ebpf", nil), driver("iptables", nil)}, dataplane.Config{Log: slog.New(slog.DiscardHandler)})
	want := []Backend{{Name: "ipvs", Reason: "the kernel has no ip_vs"}, {Name: "ebpf", Works: true, Auto: true}, {Name: "iptables", Works: true}}
	if fmt.Sprint(r.Backends) != fmt.Sprint(want) || !r.Works() {
		t.Errorf("got %+v, want %+v", r.Backends, want)
	}
}

// TestOrderAndBackends: each thing is looked at once, in the order of the groups, and is
// for those backends that need it.
func TestOrderAndBackends(t *testing.T) {
	m := machine{files: healthy()}
	var got []string
	for _, c := range Examine(t.Context(), m.system(t), m.drivers(), dataplane.Config{}).Checks {
		got = append(got, strings.TrimSpace(c.Group+" "+c.Name+" "+strings.Join(c.For, " ")))
	}
	want := []string{
		"privileges CAP_NET_ADMIN", "privileges CAP_BPF ebpf", "privileges CAP_PERFMON ebpf", "privileges CAP_SYS_ADMIN ebpf", "privileges CAP_SYS_PTRACE ebpf",
		"privileges CAP_NET_RAW iptables",
		"kernel version ebpf", "kernel cgroup v2 ebpf", "kernel bpf file system ebpf", "kernel conntrack nftables iptables ipvs", "kernel IPVS ipvs",
		"tools iptables-nft iptables", "tools ip6tables-nft iptables", "tools iptables-legacy iptables", "tools ip6tables-legacy iptables",
		"settings net.ipv4.ip_forward", "settings net.ipv6.conf.all.forwarding", "settings net.ipv4.conf.all.rp_filter",
		"settings net.bridge.bridge-nf-call-iptables nftables iptables ipvs", "settings net.bridge.bridge-nf-call-ip6tables nftables iptables ipvs",
		"settings net.netfilter.nf_conntrack_tcp_be_liberal nftables iptables ipvs", "settings net.netfilter.nf_conntrack_acct nftables iptables ipvs",
		"neighbours other Service proxies",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
