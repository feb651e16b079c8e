package config

import (
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

// leaves is the path of every field of upstream's type.
func leaves(t *testing.T) []string {
	t.Helper()
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
	walk("", reflect.TypeFor[kubeproxy.KubeProxyConfiguration]())
	return out
}

// row is a line of the table in docs.
type row struct{ field, flags, here string }

func table(t *testing.T) []row {
	t.Helper()
	text, err := os.ReadFile("../../docs/kube-proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	for _, m := range regexp.MustCompile("(?m)^\\| (`[^|]*`|) \\| ([^|]*) \\| ([^|]*) \\|$").FindAllStringSubmatch(string(text), -1) {
		rows = append(rows, row{strings.Trim(m[1], "`"), m[2], m[3]})
	}
	return rows
}

// TestTheTableHasEveryField fails when upstream's type gets a field.
func TestTheTableHasEveryField(t *testing.T) {
	rows := table(t)
	fields := leaves(t)
	if len(fields) < 50 {
		t.Fatalf("found just %d fields", len(fields))
	}
	for _, f := range fields {
		i := slices.IndexFunc(rows, func(r row) bool { return r.field == f })
		if i < 0 {
			t.Errorf("docs/kube-proxy.md lacks the field %s", f)
			continue
		}
		reason := ""
		for name, why := range meaningless() {
			if f == name || strings.HasPrefix(f, name+".") {
				reason = "no meaning: " + why
			}
		}
		if strings.HasPrefix(rows[i].here, "no meaning") != (reason != "") || reason != "" && rows[i].here != reason {
			t.Errorf("docs/kube-proxy.md says of %s %q; in the code it is %q", f, rows[i].here, reason)
		}
	}
	for _, r := range rows {
		if r.field != "" && !strings.HasPrefix(r.field, ownKind+".") && !slices.Contains(fields, r.field) {
			t.Errorf("docs/kube-proxy.md has a field %s, and upstream has none", r.field)
		}
	}
	for name := range meaningless() {
		if !slices.ContainsFunc(fields, func(f string) bool { return f == name || strings.HasPrefix(f, name+".") }) {
			t.Errorf("%s is no field", name)
		}
	}
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
	log-text-info-buffer-size log-json-split-stream log-json-info-buffer-size boot-id-file machine-id-file`

func TestTheTableHasEveryFlag(t *testing.T) {
	rows := table(t)
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	(&Options{}).AddFlags(fs)
	documented := func(name string) bool {
		return slices.ContainsFunc(rows, func(r row) bool { return strings.Contains(r.flags, "`--"+name+"`") })
	}
	for _, name := range strings.Fields(kubeProxyFlags) {
		if fs.Lookup(name) == nil {
			t.Errorf("kube-proxy's --%s is not taken", name)
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if !documented(f.Name) {
			t.Errorf("docs/kube-proxy.md lacks --%s", f.Name)
		}
		if field := fieldOf(f.Name); field != "" {
			i := slices.IndexFunc(rows, func(r row) bool { return strings.Contains(r.flags, "`--"+f.Name+"`") })
			if i >= 0 && rows[i].field != field {
				t.Errorf("docs/kube-proxy.md has --%s beside %s; it fills %s", f.Name, rows[i].field, field)
			}
		}
	})
}
