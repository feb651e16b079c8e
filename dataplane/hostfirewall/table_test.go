package hostfirewall

import (
	"slices"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

func TestDropsRest(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"nothing", []string{"-P FORWARD ACCEPT"}, ""},
		{"a policy (Docker, ufw)", []string{"-P FORWARD DROP", "-A FORWARD -j DOCKER-USER"}, "-P FORWARD DROP"},
		{"a last rule (firewalld's iptables, RHEL)", []string{"-P FORWARD ACCEPT", "-A FORWARD -i lo -j ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"},
			"-A FORWARD -j REJECT --reject-with icmp-host-prohibited"},
		{"a last rule that drops", []string{"-P FORWARD ACCEPT", "-A FORWARD -j DROP"}, "-A FORWARD -j DROP"},
		{"rules that drop some", []string{"-P FORWARD ACCEPT", "-A FORWARD -s 192.0.2.1/32 -j DROP"}, ""},
		{"a last rule with a comment", []string{`-A FORWARD -m comment --comment "drop the rest" -j DROP`}, `-A FORWARD -m comment --comment "drop the rest" -j DROP`},
		{"a chain whose name begins so", []string{"-A FORWARD -j DROP-SPOOFED"}, ""},
		{"a policy of another chain", []string{"-P INPUT DROP"}, ""},
	} {
		if got := dropsRest("FORWARD", c.lines); got != c.want {
			t.Errorf("%s: %q drops the rest; want %q", c.name, got, c.want)
		}
	}
}

// TestStale: rules go for ports alone, however a version of iptables writes the others.
func TestStale(t *testing.T) {
	have := []string{"-N OPEN", "-A OPEN -m mark --mark 0x4000/0x4000 -j ACCEPT", "-A OPEN -p tcp -m tcp --dport 1 -j ACCEPT", "-A OPEN -p tcp -m tcp --dport 2 -j ACCEPT"}
	got := stale("OPEN", have, []string{acceptPort(2)})
	if want := []string{acceptPort(1)}; !slices.Equal(got, want) {
		t.Errorf("stale are %q; want %q", got, want)
	}
}

// TestSynced: rules follow the ports of health checks, and only those.
func TestSynced(t *testing.T) {
	port := func(name string, check uint16) *dataplane.ServicePort {
		p := &dataplane.ServicePort{ID: dataplane.PortID{Namespace: "shop", Service: name}}
		if check != 0 {
			p.HealthCheck = &dataplane.HealthCheck{Port: check}
		}
		return p
	}
	k := NewKeeper(Config{MasqueradeBit: 14})
	for _, c := range []struct {
		name  string
		ports []*dataplane.ServicePort
		asked bool
		want  []string
	}{
		{"first", []*dataplane.ServicePort{port("a", 0)}, true, nil},
		{"a check comes", []*dataplane.ServicePort{port("a", 31999)}, true, []string{acceptPort(31999)}},
		{"a second port of its Service", []*dataplane.ServicePort{port("a", 31999), port("b", 31999)}, false, []string{acceptPort(31999)}},
		{"one of the two goes", []*dataplane.ServicePort{port("b", 31999)}, false, []string{acceptPort(31999)}},
		{"the check goes", []*dataplane.ServicePort{port("b", 0)}, true, nil},
	} {
		k.Synced(&dataplane.Snapshot{Ports: dataplane.MakePorts(c.ports...)})
		asked := len(k.poke) == 1
		for range len(k.poke) {
			<-k.poke
		}
		if got := k.chains()[1].rules; asked != c.asked || !slices.Equal(got, c.want) {
			t.Errorf("%s: asked for a look: %t, rules of INPUT %q; want %t, %q", c.name, asked, got, c.asked, c.want)
		}
	}
}
