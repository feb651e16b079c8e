package costs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/netlab"
	"github.com/switchyard-io/switchyard/watcher"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// stopTime is how long a process that is counted may take to end.
const stopTime = 5 * time.Second

// Watched is what the watcher costs with so many Services.
type Watched struct {
	Event Allocated // one EndpointSlice event, from the decoded object to the next Snapshot
	Heap  int64     // facts and Snapshot
}

// Watch counts what the watcher costs, in this process.
func (a *agent) Watch(services int, out *Watched) error {
	before := liveHeap()
	w, err := watcher.New(watcher.Options{
		Log: slog.New(slog.DiscardHandler), NodeName: "node-a", Families: []dataplane.Family{dataplane.IPv4},
		Addresses: func(ctx context.Context, _ func([]netip.Prefix)) error { <-ctx.Done(); return nil },
	}, func() {})
	if err != nil {
		return fmt.Errorf("making a watcher: %w", err)
	}
	w.SetAddresses([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")})
	all := facts.Change{
		Services: facts.Delta[facts.Service]{All: true}, Slices: facts.Delta[facts.Slice]{All: true},
		Nodes: facts.Delta[facts.Node]{All: true, Put: []*facts.Node{{Name: facts.Name{Name: "node-a"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Eligible: true}}},
	}
	for i := range services {
		f, problems := facts.FromSlice(slice(i, 0), "node-a")
		if len(problems) > 0 {
			return errors.Join(problems...)
		}
		all.Slices.Put = append(all.Slices.Put, f)
		all.Services.Put = append(all.Services.Put, serviceFacts(i))
	}
	w.Apply(all)
	all = facts.Change{}
	if w.Next() == nil {
		return errors.New("the watcher makes no Snapshot")
	}
	out.Heap = liveHeap() - before
	send := func(version int32) func() error {
		object := slice(services/2, version)
		return func() error { return event(w, object) }
	}
	out.Event, err = typical(func() error { return nil }, send(1), send(0))
	return err
}

// event gives the watcher one EndpointSlice and takes the next Snapshot.
func event(w *watcher.Watcher, object *discoveryv1.EndpointSlice) error {
	f, _ := facts.FromSlice(object, "node-a")
	w.Apply(facts.Change{Slices: facts.Delta[facts.Slice]{Put: []*facts.Slice{f}}})
	if w.Next() == nil {
		return errors.New("an EndpointSlice event led to no Snapshot")
	}
	return nil
}

// serviceFacts returns Service i of many as the watcher knows it.
func serviceFacts(i int) *facts.Service {
	return &facts.Service{
		Name:       facts.Name{Namespace: "costs", Name: fmt.Sprintf("web-%05d", i)},
		ClusterIPs: []netip.Addr{clusterIP(i).Addr()},
		Ports:      []facts.ServicePort{{Name: "http", Protocol: dataplane.TCP, Port: clusterIP(i).Port()}},
	}
}

// slice returns the endpoints of Service i of many as the API has them. version
// replaces the last one.
func slice(i int, version int32) *discoveryv1.EndpointSlice {
	yes, name, port := true, "http", int32(servedPort)
	service := fmt.Sprintf("web-%05d", i)
	o := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "costs", Name: service + "-abcde",
			Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for e := range endpointsOf {
		n := i*endpointsOf + e
		addr := netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)})
		if e == endpointsOf-1 && version > 0 {
			addr = netip.AddrFrom4([4]byte{10, 255, byte(version >> 8), byte(version)})
		}
		node := fmt.Sprintf("node-%d", n%100)
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr.String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}})
	}
	return o
}

// watcher counts what the watcher costs, in a process for each number of Services.
func (b *bench) watcher() error {
	for _, n := range sizes() {
		p, err := b.node.StartRole(roleName, []string{"GOMAXPROCS=1"})
		if err != nil {
			return err
		}
		var w Watched
		err = p.Call("Costs.Watch", n, &w)
		p.Stop(netlab.Patient(stopTime))
		if err != nil {
			return err
		}
		b.add("watcher", n, w.Event.costs("one EndpointSlice event")...)
		if n == many {
			b.add("watcher", n, Cost{What: "facts and Snapshot for each endpoint", Unit: "bytes", Value: perEndpoint(w.Heap, n*endpointsOf)})
		}
	}
	return nil
}
