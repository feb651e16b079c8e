package catalog

import (
	"log/slog"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// warnOfBridges says that packets which a Linux bridge passes on by itself do not
// come by netfilter: then a pod reaches no pod on the same bridge by a Service.
func warnOfBridges(log *slog.Logger, proc sysctl.Tree, families []dataplane.Family) {
	for _, f := range families {
		setting := map[dataplane.Family]string{
			dataplane.IPv4: "net/bridge/bridge-nf-call-iptables",
			dataplane.IPv6: "net/bridge/bridge-nf-call-ip6tables",
		}[f]
		if n, err := proc.Int(setting); err == nil && n != 1 { // without br_netfilter nobody can tell
			log.Warn("packets between pods on one Linux bridge do not come by netfilter; Services may not work among them",
				"setting", setting, "value", n)
		}
	}
}
