package config

import (
	"bytes"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// leaves returns the path of every field of a document.
func leaves(document reflect.Type) []string {
	var out []string
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || reflect.PointerTo(typ).Implements(reflect.TypeFor[interface{ UnmarshalJSON([]byte) error }]()) {
			out = append(out, path)
			return
		}
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Type == reflect.TypeFor[metav1.TypeMeta]():
			case name == "":
				walk(path, f.Type)
			default:
				walk(strings.TrimPrefix(path+"."+name, "."), f.Type)
			}
		}
	}
	walk("", document)
	return out
}

// fields returns the path of every field of both documents.
func fields(t *testing.T) []string {
	t.Helper()
	all := leaves(reflect.TypeFor[kubeproxy.KubeProxyConfiguration]())
	if len(all) < 50 {
		t.Fatalf("found just %d fields", len(all))
	}
	for _, f := range leaves(reflect.TypeFor[Switchyard]()) {
		all = append(all, ownKind+"."+f)
	}
	return all
}

// TestEveryFieldIsASetting fails when upstream's type or ours gets a field that
// has no row, and when a row is of no field.
func TestEveryFieldIsASetting(t *testing.T) {
	rows, all := Default().settings(nil), fields(t)
	for _, f := range all {
		covering := slices.DeleteFunc(slices.Clone(rows), func(s setting) bool { return !s.covers(f) })
		if len(covering) != 1 {
			t.Errorf("%s has %d rows in table.go", f, len(covering))
		}
	}
	for _, s := range rows {
		if s.path != "" && !slices.ContainsFunc(all, s.covers) {
			t.Errorf("table.go has a row of %s, which is no field", s.path)
		}
	}
}

// line is a line of the table in docs.
type line struct {
	field, here string
	flags       []string // without dashes
	ours        bool     // it is marked with an asterisk
}

func table(t *testing.T) []line {
	t.Helper()
	text, err := os.ReadFile("../../docs/kube-proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("| field | flag | here |"))
	text, _, _ = bytes.Cut(text, []byte("\n\n"))
	var lines []line
	for _, m := range regexp.MustCompile("(?m)^\\| (`[^|]*`|) \\| ([^|]*) \\| ([^|]*) \\|$").FindAllStringSubmatch(string(text), -1) {
		l := line{field: strings.Trim(m[1], "`"), here: m[3], ours: strings.HasSuffix(m[2], "*")}
		for _, flag := range regexp.MustCompile("`--?([^`]+)`").FindAllStringSubmatch(m[2], -1) {
			l.flags = append(l.flags, flag[1])
		}
		lines = append(lines, l)
	}
	return lines
}

// means returns what docs must say of a setting; "": what it likes.
func (s setting) means() string {
	if s.idle != "" {
		return "no meaning: " + s.idle
	}
	return s.deprecated
}

// TestEverySettingIsDocumented compares the rows with the table in docs.
func TestEverySettingIsDocumented(t *testing.T) {
	lines := table(t)
	for _, s := range Default().settings(nil) {
		found := slices.DeleteFunc(slices.Clone(lines), func(l line) bool {
			return !s.covers(l.field) && (s.flag == "" || !slices.Contains(l.flags, s.flag))
		})
		if len(found) == 0 {
			t.Errorf("docs/kube-proxy.md lacks --%s, %s", s.flag, s.path)
		}
		for _, l := range found {
			if s.flag != "" && (l.field != s.path || !slices.Contains(l.flags, s.flag)) {
				t.Errorf("docs/kube-proxy.md has %s, %q in a line; it is %s, --%s", l.field, l.flags, s.path, s.flag)
			}
			if means := strings.ReplaceAll(l.here, "`", ""); means != s.means() && (s.means() != "" || strings.HasPrefix(means, "no meaning")) {
				t.Errorf("docs/kube-proxy.md says of %s %q; table.go says %q", l.field, l.here, s.means())
			}
		}
	}
}

// TestEveryDocumentedSettingExists looks the lines of docs up in the rows.
func TestEveryDocumentedSettingExists(t *testing.T) {
	rows := Default().settings(nil)
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	(&Options{}).AddFlags(fs)
	fs.Bool("version", false, "cmd adds it")
	documented := map[string]bool{}
	for _, l := range table(t) {
		if l.field != "" && !slices.ContainsFunc(rows, func(s setting) bool { return s.covers(l.field) }) {
			t.Errorf("docs/kube-proxy.md has a field %s, and table.go has none", l.field)
		}
		for _, flag := range l.flags {
			documented[flag] = true
			if fs.Lookup(flag) == nil {
				t.Errorf("docs/kube-proxy.md has a flag --%s, and there is none", flag)
			}
			if theirs := slices.Contains(strings.Fields(kubeProxyFlags), flag); theirs == l.ours {
				t.Errorf("docs/kube-proxy.md: kube-proxy has --%s: %t; an asterisk says that it is ours: %t", flag, theirs, l.ours)
			}
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if !documented[f.Name] {
			t.Errorf("docs/kube-proxy.md lacks --%s", f.Name)
		}
	})
}

// kubeProxyFlags is every flag that kube-proxy v1.37.2 takes (KUBE-PROXY §2.2).
const kubeProxyFlags = `config write-config-to cleanup init-only feature-gates kubeconfig master
	kube-api-content-type kube-api-burst kube-api-qps hostname-override bind-address healthz-bind-address
	metrics-bind-address bind-address-hard-fail profiling show-hidden-metrics-for-version proxy-mode
	iptables-masquerade-bit masquerade-all iptables-localhost-nodeports iptables-sync-period
	iptables-min-sync-period ipvs-sync-period ipvs-min-sync-period ipvs-scheduler ipvs-exclude-cidrs
	ipvs-strict-arp ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout detect-local-mode
	pod-bridge-interface pod-interface-name-prefix cluster-cidr nodeport-addresses oom-score-adj
	conntrack-max-per-core conntrack-min conntrack-tcp-timeout-established conntrack-tcp-timeout-close-wait
	conntrack-tcp-be-liberal conntrack-udp-timeout conntrack-udp-timeout-stream config-sync-period
	healthz-port metrics-port v vmodule logging-format log-flush-frequency log-text-split-stream
	log-text-info-buffer-size log-json-split-stream log-json-info-buffer-size boot-id-file machine-id-file version`

func TestKubeProxysFlagsAreTaken(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	(&Options{}).AddFlags(fs)
	for _, name := range strings.Fields(kubeProxyFlags) {
		if name != "version" && fs.Lookup(name) == nil { // cmd adds --version
			t.Errorf("kube-proxy's --%s is not taken", name)
		}
	}
}
