package ipvs

import (
	"slices"

	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// localnet says how NodePorts on 127.0.0.0/8 are made to work (KUBE-PROXY
// §1.10). route_localnet lets the kernel send packets from 127.0.0.1 out to an
// endpoint; it also lets neighbours reach 127.0.0.1, so a rule drops them.
type localnet uint8

const (
	localnetOff    localnet = iota
	localnetFound           // route_localnet was on before us
	localnetSwitch          // we switched it on, and switch it off when done
)

const routeLocalnet = "net/ipv4/conf/all/route_localnet"

// switchedNote is how a later process knows that we switched it on.
const switchedNote = " route_localnet was off"

func (l localnet) note(chain string) string {
	if chain == chainInput && l == localnetSwitch {
		return switchedNote
	}
	return ""
}

// localnetOf finds in the notes of our rules what we did before.
func localnetOf(chains map[string][]string) localnet {
	notes := chains[chainInput]
	switch {
	case len(notes) == 0:
		return localnetOff
	case slices.ContainsFunc(notes, func(n string) bool { return len(n) > len(switchedNote) && n[len(n)-len(switchedNote):] == switchedNote }):
		return localnetSwitch
	default:
		return localnetFound
	}
}

func setRouteLocalnet(on bool) error {
	if on {
		return sysctl.Proc.SetInt(routeLocalnet, 1)
	}
	return sysctl.Proc.SetInt(routeLocalnet, 0)
}

func routesLocalnet() (bool, error) {
	n, err := sysctl.Proc.Int(routeLocalnet)
	return n != 0, err
}
