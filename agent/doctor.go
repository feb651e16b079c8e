package agent

import (
	"context"
	"log/slog"

	"github.com/switchyard-io/switchyard/agent/config"
	"github.com/switchyard-io/switchyard/agent/inspect/doctor"
	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/dataplane/hostfirewall"
)

// Examine reports what this machine can do for each backend. It changes nothing.
func Examine(ctx context.Context, c *config.Config) doctor.Report {
	cfg := c.Dataplane(slog.New(slog.DiscardHandler), dataplane.HostFamilies())
	host := doctor.Host()
	host.KubeProxy = kubeProxy().Find
	host.Firewall = func() ([]string, error) { return hostfirewall.Closed(cfg.Families) }
	r := doctor.Examine(ctx, host, catalog.Drivers(c.Backends()), cfg)
	if asked := c.Backend(); asked != catalog.Auto {
		r.Asked = asked
	}
	return r
}
