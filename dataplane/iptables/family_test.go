package iptables

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/iptables/internal/restore"
)

// breaks makes one of the wrapped programs fail, or work again.
func (k *kernel) breaks(base, what string, fails bool) {
	k.t.Helper()
	path := filepath.Join(k.dir, base+"-"+string(k.variant)+what)
	var err error
	if fails {
		err = errors.Join(os.Rename(path, path+".well"), os.WriteFile(path, []byte("#!/bin/sh\necho spoiled >&2\nexit 1\n"), 0o755))
	} else {
		err = os.Rename(path+".well", path)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

// only is a Snapshot of the ServicePorts of some families.
func only(s *dataplane.Snapshot, families ...dataplane.Family) *dataplane.Snapshot {
	out := *s
	out.Ports = dataplane.Ports{}
	for p := range s.Ports.All() {
		if slices.Contains(families, p.ID.Family) {
			out.Ports = out.Ports.With([]*dataplane.ServicePort{p}, nil)
		}
	}
	return &out
}

// TestFamilyAlone: what befalls one family neither stops the other nor makes it
// be read back, and the next Sync mends it.
func TestFamilyAlone(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		for _, broken := range []struct {
			base   string
			family dataplane.Family
			other  dataplane.Family
		}{{"ip6tables", dataplane.IPv6, dataplane.IPv4}, {"iptables", dataplane.IPv4, dataplane.IPv6}} {
			programs := []string{"-restore"}
			if k.variant == restore.Legacy { // nft is written where it cannot be read
				programs = []string{"-save", "-restore"}
			}
			for _, what := range programs {
				name := broken.base + what
				want := mixed()
				b := k.open()
				k.breaks(broken.base, what, true)
				var failed *dataplane.FamilyError
				err := b.Sync(t.Context(), nil, want)
				known := only(want, broken.other)     // what is in force
				if what == "-restore" && err == nil { // it held it all already
					old := want
					changed := *want
					changed.Ports = want.Ports.With(nil, []dataplane.PortID{port("shop/empty", dataplane.TCP).ID, in(broken.family, port("shop/empty", dataplane.TCP)).ID})
					want = &changed
					err = b.Sync(t.Context(), nil, want)
					known = &dataplane.Snapshot{Revision: want.Revision, Node: want.Node, ServiceCIDRs: want.ServiceCIDRs}
					known.Ports = dataplane.Replace(want.Ports, old.Ports, func(id dataplane.PortID) bool { return id.Family == broken.family })
				}
				if !errors.As(err, &failed) || len(failed.Failed) != 1 || !failed.Has(broken.family) {
					t.Fatalf("%s fails: Sync returned %v; want an error of %s alone", name, err, broken.family)
				}
				b.Hold([]dataplane.Family{broken.family})
				k.mustHold(b, only(want, broken.other))
				k.runs()
				k.mustSync(b, known, known)
				if runs := k.runs(); len(runs) > 0 {
					t.Errorf("%s fails, and nothing changed: Sync ran %v", name, runs)
				}
				b.Hold(nil)
				k.breaks(broken.base, what, false)
				k.mustSync(b, known, want)
				if slices.ContainsFunc(k.runs(), func(run string) bool { return !strings.HasPrefix(run, broken.base+"-") }) {
					t.Errorf("%s works again, and the other family was read back", name)
				}
				k.mustHold(b, want)
				_ = b.Close()
			}
		}
	})
}

// in is a ServicePort in another family.
func in(f dataplane.Family, p *dataplane.ServicePort) *dataplane.ServicePort {
	p.ID.Family = f
	return p
}

// TestSyncerWithoutIP6Tables: changes of IPv4 go on, and those who follow the
// kernel learn of them, health checks among them.
func TestSyncerWithoutIP6Tables(t *testing.T) {
	eachVariant(t, func(t *testing.T, k *kernel) {
		b := k.open() // else it would not be opened for IPv6
		k.breaks("ip6tables", "-restore", true)
		reports := make(chan dataplane.SyncReport, 100)
		s := dataplane.NewSyncer(b, dataplane.SyncerConfig{Log: config(t).Log, Report: func(r dataplane.SyncReport) { reports <- r }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		first := mixed()
		second := *first
		second.Revision = first.Revision + 1
		second.Ports = first.Ports.With(nil, []dataplane.PortID{port("shop/empty", dataplane.TCP).ID})
		for _, want := range []*dataplane.Snapshot{first, &second} {
			s.Submit(want)
			var r dataplane.SyncReport
			for r.Want != want {
				select {
				case r = <-reports:
				case <-time.After(time.Minute):
					t.Fatal("no Sync")
				}
			}
			if r.InForce == nil || len(r.Failing) != 1 || r.Failing[0].Family != dataplane.IPv6 {
				t.Fatalf("the Sync is reported with %+v", r)
			}
			checked := 0
			for p := range r.InForce.Ports.All() {
				if p.HealthCheck != nil {
					checked++
				}
			}
			if checked != 3 {
				t.Errorf("%d ServicePorts with health checks are in force; want those of IPv4", checked)
			}
		}
		cancel()
		<-done
		b.Hold([]dataplane.Family{dataplane.IPv6})
		k.mustHold(b, only(&second, dataplane.IPv4))
	})
}

// becomes makes one of the wrapped programs run another script. "$well" in it is the
// program as it was.
func (k *kernel) becomes(base, what, script string) {
	k.t.Helper()
	path := filepath.Join(k.dir, base+"-"+string(k.variant)+what)
	if _, err := os.Stat(path + ".well"); err != nil {
		k.breaks(base, what, true)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\nwell="+path+".well\n"+script+"\n"), 0o755); err != nil {
		k.t.Fatal(err)
	}
}

// hangsAfter has a command that uses no processor time be stopped so soon.
func hangsAfter(b *backend, idle time.Duration) {
	for _, f := range b.families {
		f.commands.Idle = idle
	}
}

// TestAFamilyThatHangs: a program of one family that never ends keeps the other
// family from nothing, and is waited for less when it is tried again.
func TestAFamilyThatHangs(t *testing.T) {
	for _, hanging := range []struct {
		base   string
		family dataplane.Family
		other  dataplane.Family
	}{{"ip6tables", dataplane.IPv6, dataplane.IPv4}, {"iptables", dataplane.IPv4, dataplane.IPv6}} {
		t.Run(hanging.base, func(t *testing.T) {
			eachVariant(t, func(t *testing.T, k *kernel) {
				b := k.open()
				hangsAfter(b, 10*time.Second)
				k.becomes(hanging.base, "-restore", "exec sleep 60")
				want := mixed()
				for _, try := range []struct{ least, most time.Duration }{{9 * time.Second, 40 * time.Second}, {0, 8 * time.Second}} {
					start := time.Now()
					err := b.Sync(t.Context(), nil, want)
					took := time.Since(start)
					var failed *dataplane.FamilyError
					if !errors.As(err, &failed) || len(failed.Failed) != 1 || !failed.Has(hanging.family) || took < try.least || took > try.most {
						t.Fatalf("after %v Sync returned %v; want an error of %s alone after %v to %v", took, err, hanging.family, try.least, try.most)
					}
				}
				b.Hold([]dataplane.Family{hanging.family})
				k.mustHold(b, only(want, hanging.other))
				b.Hold(nil)
				k.breaks(hanging.base, "-restore", false)
				k.mustSync(b, nil, want)
				k.mustHold(b, want)
			})
		})
	}
}

// TestASlowFamily: a family that makes progress is not stopped, however much longer it
// takes than the other one.
func TestASlowFamily(t *testing.T) {
	const busy = `end=$(($(date +%s) + 7)); while [ $(date +%s) -lt $end ]; do :; done`
	for name, c := range map[string]struct {
		programs []string
		script   string
	}{
		"one command is at work":                     {[]string{"-restore"}, busy + `; exec $well "$@"`},
		"one command is at work in a child":          {[]string{"-restore"}, "(" + busy + `); $well "$@"`},
		"commands end, though each is idle for long": {[]string{"-save", "-restore"}, `sleep 2.2; exec $well "$@"`},
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(_ *testing.T, k *kernel) {
				b := k.open()
				hangsAfter(b, 4*time.Second)
				for _, what := range c.programs {
					k.becomes("iptables", what, c.script)
				}
				k.mustSync(b, nil, mixed())
				k.mustHold(b, mixed())
			})
		})
	}
}
