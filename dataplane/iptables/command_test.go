package iptables

import (
	"errors"
	"fmt"
	"testing"
)

// TestMayPass: what another try may succeed at.
func TestMayPass(t *testing.T) {
	failed := errors.New("exit status 2")
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"another program holds the lock", fmt.Errorf("%w: not free within 5 seconds", errLocked), true},
		{"the module of a legacy table is being loaded", &refusal{err: failed, text: "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'filter' Error occurred at line: 1"}, true},
		{"a rule is refused", &refusal{err: failed, text: "line 4: RULE_APPEND failed (Operation not supported)"}, false},
		{"something else", failed, false},
	} {
		if got := mayPass(c.err); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}
