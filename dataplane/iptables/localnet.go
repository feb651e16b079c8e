package iptables

import (
	"strings"

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
const switchedNote = "route_localnet was off"

// rule drops what reaches 127.0.0.0/8 from outside by no doing of ours.
func (l localnet) rule() string {
	note := ""
	switch l {
	case localnetOff:
		return ""
	case localnetSwitch:
		note = comment(switchedNote) + " "
	case localnetFound:
		note = " "
	}
	return "! -s 127.0.0.0/8 -d 127.0.0.0/8" + note + "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
}

// localnetOf finds in our INPUT chain, as read back, what we did before.
func localnetOf(input string) localnet {
	switch {
	case strings.Contains(input, switchedNote):
		return localnetSwitch
	case strings.Contains(input, "-d 127.0.0.0/8 "):
		return localnetFound
	default:
		return localnetOff
	}
}

// routesLocalnet reads route_localnet of this network namespace.
func routesLocalnet() (bool, error) {
	n, err := sysctl.Proc.Int(routeLocalnet)
	return n != 0, err
}

func setRouteLocalnet(on bool) error {
	if on {
		return sysctl.Proc.SetInt(routeLocalnet, 1)
	}
	return sysctl.Proc.SetInt(routeLocalnet, 0)
}
