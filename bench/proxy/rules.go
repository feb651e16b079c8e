package proxy

import (
	"context"
	"fmt"
	"strings"

	"github.com/switchyard-io/switchyard/bench/control"
)

// Rule writes what a node without a proxy has: nothing, a rule that makes the
// kernel track connections, or one rule that translates all of these Services.
func (p *Proxy) Rule(ctx context.Context, services []*control.Placed) error {
	var rules string
	switch p.base() {
	case Conntrack:
		rules = "table inet bench { chain tracked { type filter hook prerouting priority 0; ct state new counter; }; }"
	case OneRule:
		rules = p.translation(services)
	default:
		return nil
	}
	if _, err := p.Node.Run(ctx, "nft", rules); err != nil {
		return fmt.Errorf("writing the rules of %s: %w", p.Name, err)
	}
	return nil
}

// translation is a table with a map from where Services answer to their endpoints.
func (p *Proxy) translation(services []*control.Placed) string {
	to := map[int][]string{}
	var masqueraded []string
	for _, s := range services {
		for i, port := range s.Ports {
			protocol := strings.ToLower(string(port.Protocol))
			for at, version := range s.Versions() {
				end := fmt.Sprintf("%s . %d", s.Endpoints[0].Addrs[at], port.Target)
				to[version] = append(to[version], fmt.Sprintf("%s . %s . %d : %s", s.ClusterIP(version, i).Addr(), protocol, port.Port, end))
				if s.NodePort {
					to[version] = append(to[version], fmt.Sprintf("%s . %s . %d : %s", p.Node.Addr(version), protocol, s.NodePorts[i], end))
				}
			}
			if s.NodePort && !s.Local {
				masqueraded = append(masqueraded, fmt.Sprint(s.NodePorts[i]))
			}
		}
	}
	translate := "dnat ip to ip daddr . meta l4proto . th dport map @to4; dnat ip6 to ip6 daddr . meta l4proto . th dport map @to6;"
	post := ""
	if len(masqueraded) > 0 {
		post = fmt.Sprintf("ct status dnat meta l4proto { tcp, udp } ct original proto-dst { %s } masquerade;", strings.Join(masqueraded, ", "))
	}
	return fmt.Sprintf(`table inet bench {
map to4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; %s };
map to6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; %s };
chain pre { type nat hook prerouting priority -100; %s };
chain out { type nat hook output priority -100; %s };
chain post { type nat hook postrouting priority 100; %s };
}`, elements(to[4]), elements(to[6]), translate, translate, post)
}

func elements(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return "elements = { " + strings.Join(all, ", ") + " };"
}
