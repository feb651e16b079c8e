package iptables

import (
	"fmt"
	"os"
	"strings"
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

const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

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
	b, err := os.ReadFile(routeLocalnet)
	if err != nil {
		return false, fmt.Errorf("reading route_localnet: %w", err)
	}
	return strings.TrimSpace(string(b)) != "0", nil
}

func setRouteLocalnet(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := os.WriteFile(routeLocalnet, []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting route_localnet to %s: %w", value, err)
	}
	return nil
}
