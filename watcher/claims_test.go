package watcher

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

// claiming is a Service made at a time, with an external IP and a node port.
func claiming(name string, n int, created int64, externalIP string, nodePort uint16) *facts.Service {
	s := svc(name, n)
	s.Created = created
	s.Ports[0].NodePort = nodePort
	if externalIP != "" {
		s.ExternalIPs = []netip.Addr{netip.MustParseAddr(externalIP)}
	}
	return s
}

// TestConflicts is who has a frontend that several Services want. The order in
// which they are put does not matter.
func TestConflicts(t *testing.T) {
	const ip = "198.51.100.1"
	for _, tc := range []struct {
		name      string
		services  []*facts.Service
		has       []string // frontends in conflict, as "service kind address"
		conflicts []string
	}{
		{"the older Service has the external IP", []*facts.Service{claiming("a", 1, 20, ip, 0), claiming("b", 2, 10, ip, 0)},
			[]string{"b ExternalIP 198.51.100.1:80"}, []string{"TCP 198.51.100.1:80 is shop/b's, so that shop/a is without it"}},
		{"of the same age: by name", []*facts.Service{claiming("b", 1, 10, ip, 0), claiming("a", 2, 10, ip, 0), claiming("c", 3, 10, ip, 0)},
			[]string{"a ExternalIP 198.51.100.1:80"}, []string{"TCP 198.51.100.1:80 is shop/a's, so that shop/b, shop/c is without it"}},
		{"a node port", []*facts.Service{claiming("a", 1, 20, "", 30000), claiming("b", 2, 10, "", 30000)},
			[]string{"b NodePort 0.0.0.0:30000"}, []string{"TCP 0.0.0.0:30000 is shop/b's, so that shop/a is without it"}},
		{"a ClusterIP", []*facts.Service{claiming("a", 1, 20, "", 0), claiming("b", 1, 10, "", 0)},
			[]string{"b ClusterIP 10.96.0.1:80"}, []string{"TCP 10.96.0.1:80 is shop/b's, so that shop/a is without it"}},
		{"a ClusterIP is not taken by an older Service's external IP", []*facts.Service{claiming("a", 1, 20, "", 0), claiming("b", 2, 10, "10.96.0.1", 0)},
			[]string{"a ClusterIP 10.96.0.1:80"}, []string{"TCP 10.96.0.1:80 is shop/a's, so that shop/b is without it"}},
		{"another port number is no conflict", []*facts.Service{claiming("a", 1, 20, ip, 30000), func() *facts.Service {
			s := claiming("b", 2, 10, ip, 30001)
			s.Ports[0].Port = 81
			return s
		}()}, []string{"a ExternalIP 198.51.100.1:80", "a NodePort 0.0.0.0:30000", "b ExternalIP 198.51.100.1:81", "b NodePort 0.0.0.0:30001"}, nil},
		{"nor is another protocol", []*facts.Service{claiming("a", 1, 20, ip, 30000), func() *facts.Service {
			s := claiming("b", 2, 10, ip, 30000)
			s.Ports[0].Protocol = dataplane.UDP
			return s
		}()}, []string{"a ExternalIP 198.51.100.1:80", "a NodePort 0.0.0.0:30000", "b ExternalIP 198.51.100.1:80", "b NodePort 0.0.0.0:30000"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 {
				slices.Reverse(tc.services)
				for _, early := range []bool{true, false} { // before the first Snapshot, or after it
					w := watch(t, nil)
					w.SetAddresses(nil)
					if early {
						w.Apply(known(tc.services, nil, hereNode()))
					} else {
						w.Apply(known(nil, nil, hereNode()))
						for _, s := range tc.services {
							w.Apply(put(s))
						}
					}
					var has []string
					for _, f := range frontends(w.last()) {
						if len(tc.conflicts) == 0 && !strings.Contains(f, "ClusterIP") || slices.ContainsFunc(tc.conflicts, func(c string) bool {
							return strings.Contains(c, " "+f[strings.LastIndex(f, " ")+1:]+" ")
						}) {
							has = append(has, f)
						}
					}
					var conflicts []string
					for _, c := range w.Status().Conflicts {
						conflicts = append(conflicts, c.String())
					}
					if !slices.Equal(has, tc.has) || !slices.Equal(conflicts, tc.conflicts) {
						t.Errorf("early %v:\n got %q, conflicts %q\nwant %q, conflicts %q", early, has, conflicts, tc.has, tc.conflicts)
					}
				}
			}
		})
	}
}

func TestTheLoserGetsItWhenTheWinnerGoes(t *testing.T) {
	const ip = "198.51.100.1"
	w := watch(t, nil)
	w.SetAddresses(nil)
	a, b, c := claiming("a", 1, 10, ip, 0), claiming("b", 2, 20, ip, 0), claiming("c", 3, 30, ip, 0)
	w.Apply(known([]*facts.Service{a, b, c}, nil, hereNode()))
	holder := func(want string) {
		t.Helper()
		got := slices.DeleteFunc(frontends(w.last()), func(f string) bool { return !strings.Contains(f, ip) })
		if fmt.Sprint(got) != "["+want+" ExternalIP "+ip+":80]" {
			t.Errorf("got %v, wanted %s", got, want)
		}
	}
	warnings := func(want int) {
		t.Helper()
		if got := strings.Count(w.log.String(), "several Services want"); got != want {
			t.Errorf("%d warnings, wanted %d", got, want)
		}
	}
	holder("a")
	warnings(1)
	w.Apply(putSlices(set("a-1", "a", 1)))
	holder("a")
	warnings(1)
	w.Apply(facts.Change{Services: facts.Delta[facts.Service]{Remove: removed("a")}})
	holder("b")
	warnings(1)                               // c was without it before
	w.Apply(put(claiming("b", 2, 20, "", 0))) // it does not want it any more
	holder("c")
	warnings(1)
	w.Apply(put(a, b))
	holder("a")
	warnings(2)
	w.Apply(put(claiming("c", 3, 5, ip, 0))) // made anew under its name, it is told as older
	holder("c")
}

// TestLosersAreTold: each Service that is without what it wants is told of,
// when that begins, with the UID that Events need.
func TestLosersAreTold(t *testing.T) {
	var told []string
	w := watch(t, func(o *Options) {
		o.Conflict = func(l Loss) { told = append(told, fmt.Sprintf("%s %s: %s", l.Service(), l.UID(), l)) }
	})
	const ip = "198.51.100.1"
	loser := claiming("a", 1, 20, ip, 0)
	loser.UID = "0123"
	w.SetAddresses(nil)
	w.Apply(known([]*facts.Service{loser, claiming("b", 2, 10, ip, 0)}, nil, hereNode()))
	want := []string{"shop/a 0123: TCP 198.51.100.1:80 is shop/b's, so that shop/a is without it"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	w.Apply(put(claiming("c", 3, 30, "", 0)))
	older := claiming("d", 4, 1, ip, 0)
	w.Apply(facts.Change{Services: facts.Delta[facts.Service]{Remove: removed("b"), Put: []*facts.Service{older}}}) // another one has it
	relabelled := *loser
	relabelled.Affinity = time.Hour
	w.Apply(put(&relabelled))
	if !slices.Equal(told, want) {
		t.Errorf("told again: %q", told)
	}
	if w.ServiceUID("shop", "a") != "0123" || w.ServiceUID("shop", "none") != "" {
		t.Errorf("UIDs %q and %q", w.ServiceUID("shop", "a"), w.ServiceUID("shop", "none"))
	}
}

// BenchmarkEditOfAContestedService edits a Service whose frontends are all
// another's. The time for each frontend is the same for any number of them.
func BenchmarkEditOfAContestedService(b *testing.B) {
	for _, n := range []int{10, 100, 200} {
		b.Run(fmt.Sprintf("frontends=%d", n*n), func(b *testing.B) {
			many := func(name string, created int64) *facts.Service {
				s := claiming(name, int(created), created, "203.0.113.1", 0)
				s.ExternalIPs, s.Ports = nil, nil
				for i := range n {
					s.ExternalIPs = append(s.ExternalIPs, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
					s.Ports = append(s.Ports, facts.ServicePort{Name: fmt.Sprint("p", i), Protocol: dataplane.TCP, Port: uint16(1000 + i)})
				}
				return s
			}
			w := watch(b, nil)
			w.SetAddresses(nil)
			w.Apply(known([]*facts.Service{many("younger", 2), many("older", 1)}, nil, hereNode()))
			w.take()
			for i := range b.N {
				edit := many("younger", 2)
				edit.InternalLocal = i%2 == 0
				w.Apply(put(edit))
			}
		})
	}
}
