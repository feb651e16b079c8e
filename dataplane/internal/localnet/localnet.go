// Package localnet lets NodePorts answer on 127.0.0.0/8, and remembers who switched the kernel's route_localnet on (KUBE-PROXY §1.10).
//
// route_localnet lets the kernel send packets from 127.0.0.1 out to an
// endpoint. It also lets neighbours reach 127.0.0.1, so a rule drops them.
package localnet

import (
	"slices"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane/internal/sysctl"
)

// State says how NodePorts on 127.0.0.0/8 are made to work.
type State uint8

// The states.
const (
	Off      State = iota
	Found          // route_localnet was on before us
	Switched       // we switched it on, and switch it off when done
)

// Setting is the kernel's setting.
const Setting = "net/ipv4/conf/all/route_localnet"

// switchedNote is how a later process knows that we switched it on.
const switchedNote = " route_localnet was off"

// Note is what the guarding rule's comment carries.
func (s State) Note() string {
	if s == Switched {
		return switchedNote
	}
	return ""
}

// Notes returns what the comments of a chain's rules carry beside their signature,
// where the rule that guards 127.0.0.0/8 is in the chain guard.
func (s State) Notes(guard string) func(chain string) string {
	return func(chain string) string {
		if chain == guard {
			return s.Note()
		}
		return ""
	}
}

// FromComments finds in the comments of the guarding rules what an earlier process did.
func FromComments(guards []string) State {
	switch {
	case len(guards) == 0:
		return Off
	case slices.ContainsFunc(guards, func(c string) bool { return strings.HasSuffix(c, switchedNote) }):
		return Switched
	default:
		return Found
	}
}

// Resume returns what an earlier process did, as the comments of the guarding rules
// say. If there are none although this process switched it on, somebody removed them.
func Resume(guards []string, known State) State {
	if len(guards) == 0 && known == Switched {
		return known
	}
	return FromComments(guards)
}

// Next returns what is to be done. serve says that NodePorts are to answer on
// 127.0.0.0/8, before what was done so far.
func Next(serve bool, before State) (State, error) {
	if !serve {
		return Off, nil
	}
	on, err := IsOn()
	switch {
	case err != nil:
		return before, err
	case !on: // another backend may have switched it off as it went
		return Switched, nil
	case before == Off:
		return Found, nil
	}
	return before, nil
}

// Switch sets route_localnet.
func Switch(on bool) error {
	if on {
		return sysctl.Proc.SetInt(Setting, 1)
	}
	return sysctl.Proc.SetInt(Setting, 0)
}

// IsOn reports whether route_localnet is on.
func IsOn() (bool, error) {
	n, err := sysctl.Proc.Int(Setting)
	return n != 0, err
}
