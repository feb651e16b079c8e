package proxy

import (
	"slices"
	"strings"
	"testing"
)

func TestMetrics(t *testing.T) {
	m := Metrics(`# HELP kubeproxy_x_total Something.
kubeproxy_x_total{ip_family="IPv4"} 3
kubeproxy_x_total{ip_family="IPv6"} 4
kubeproxy_x_total_more{ip_family="IPv4"} 100
kubeproxy_y 2.5
`)
	for _, c := range []struct {
		name, label string
		want        float64
	}{
		{"kubeproxy_x_total", "", 7},
		{"kubeproxy_x_total", `ip_family="IPv6"`, 4},
		{"kubeproxy_y", "", 2.5},
		{"kubeproxy_z", "", 0},
	} {
		if got := m.Sum(c.name, c.label); got != c.want {
			t.Errorf("%s{%s}: %v; want %v", c.name, c.label, got, c.want)
		}
	}
}

func TestChoose(t *testing.T) {
	got, _, err := Choose([]string{"kube-proxy-nftables", Straight})
	if err != nil || len(got) != 2 || got[0].Mode != "nftables" || got[1].Program != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, err := Choose([]string{"kube-proxy-userspace"}); err == nil || !strings.Contains(err.Error(), "kube-proxy-iptables") {
		t.Errorf("%v; want what there is", err)
	}
	got, _, err = Choose([]string{"switchyard-ebpf+socket-lb=off+verify-interval=1h"})
	if err != nil || len(got) != 1 || got[0].Mode != "ebpf" || !slices.Equal(got[0].Flags, []string{"--socket-lb=off", "--verify-interval=1h"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{Straight + "+v=1", Straight + "@bin/older", "kube-proxy-nftables@bin/older"} {
		if _, _, err := Choose([]string{bad}); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	got, _, err = Choose([]string{"switchyard-nftables+v=1@bin/older"})
	if err != nil || len(got) != 1 || got[0].Binary != "bin/older" || !slices.Equal(got[0].Flags, []string{"--v=1"}) {
		t.Errorf("%+v, %v", got, err)
	}
	all, without, err := Choose(nil)
	if err != nil || len(all)+len(without) != len(Kinds()) {
		t.Errorf("%d and %d of %d, %v", len(all), len(without), len(Kinds()), err)
	}
}
