package hostfirewall

import (
	"errors"
	"slices"
	"strings"
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
		{"a policy of another chain", []string{"-P INPUT DROP", "-P FORWARD ACCEPT"}, ""},
		{"a chain that logs and drops", []string{"-P FORWARD ACCEPT", "-N LOGDROP", "-A FORWARD -s 192.0.2.1/32 -j ACCEPT", "-A FORWARD -j LOGDROP", "-A LOGDROP -j LOG", "-A LOGDROP -j DROP"},
			"-A FORWARD -j LOGDROP"},
		{"a chain that drops two jumps away (RHEL)", []string{"-P FORWARD ACCEPT", "-A FORWARD -j RH-Firewall-1-INPUT", "-A RH-Firewall-1-INPUT -i lo -j ACCEPT", "-A RH-Firewall-1-INPUT -g rest", "-A rest -j REJECT --reject-with icmp-host-prohibited"},
			"-A FORWARD -j RH-Firewall-1-INPUT"},
		{"a chain that drops some", []string{"-P FORWARD ACCEPT", "-A FORWARD -j blocked", "-A blocked -s 192.0.2.1/32 -j DROP"}, ""},
		{"a chain for one client", []string{"-P FORWARD ACCEPT", "-A FORWARD -s 192.0.2.1/32 -j strict", "-A strict -j DROP"}, ""},
		{"new connections by one device", []string{"-P FORWARD ACCEPT", "-A FORWARD -i eth0 -m conntrack --ctstate NEW -j DROP"}, "-A FORWARD -i eth0 -m conntrack --ctstate NEW -j DROP"},
		{"all that is not established", []string{"-P FORWARD ACCEPT", "-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"},
			"-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"},
		{"what is invalid", []string{"-P FORWARD ACCEPT", "-A FORWARD -m conntrack --ctstate INVALID -j DROP"}, ""},
		{"all but new connections", []string{"-P FORWARD ACCEPT", "-A FORWARD -m conntrack ! --ctstate NEW -j DROP"}, ""},
		{"TCP, but for one port", []string{"-P FORWARD ACCEPT", "-A FORWARD -p tcp -m tcp ! --dport 22 -j DROP"}, ""},
		{"chains in a circle are looked at once in a while", []string{"-P FORWARD ACCEPT", "-A FORWARD -j a", "-A a -j b", "-A b -j a"}, ""},
	} {
		got, err := dropsRest("FORWARD", func(chain string) ([]string, error) {
			lines := slices.DeleteFunc(slices.Clone(c.lines), func(l string) bool { return strings.Fields(l)[1] != chain })
			if len(lines) == 0 {
				return nil, errors.New("no such chain")
			}
			return lines, nil
		})
		if got != c.want || err != nil {
			t.Errorf("%s: %q drops the rest, %v; want %q", c.name, got, err, c.want)
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
