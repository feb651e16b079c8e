// Package scale measures what many Services cost: the first packet of a connection, and the work of the proxy itself.
package scale

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/switchyard-io/switchyard/bench/control"
	"github.com/switchyard-io/switchyard/bench/load"
	"github.com/switchyard-io/switchyard/bench/proxy"
	"github.com/switchyard-io/switchyard/bench/result"
)

// Progress tells what goes on.
type Progress func(format string, args ...any)

func tcp() []control.Port {
	return []control.Port{{Protocol: corev1.ProtocolTCP, Port: 80, Target: load.EchoPort}}
}

func udp() []control.Port {
	return []control.Port{{Protocol: corev1.ProtocolUDP, Port: 80, Target: load.EchoPort}}
}

// fill creates Services until there are n.
func fill(ctx context.Context, plane *control.Plane, have []*control.Placed, n int, with func(i int) control.Service) ([]*control.Placed, error) {
	var more []control.Service
	for i := len(have); i < n; i++ {
		more = append(more, with(i))
	}
	placed, err := plane.Fill(ctx, len(have), more)
	return append(have, placed...), err
}

func key(part, what, metric string, p *proxy.Proxy, services int) result.Key {
	return result.Key{Part: part, Case: what, Metric: metric, Proxy: p.Name, Services: services}
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }
