package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestMayPass: what another try may succeed at.
func TestMayPass(t *testing.T) {
	failed := errors.New("exit status 2")
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"another program holds the lock", fmt.Errorf("%w: not free within 5 seconds", ErrLocked), true},
		{"the module of a legacy table is being loaded", &Refusal{err: failed, text: "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'filter' Error occurred at line: 1"}, true},
		{"a rule is refused", &Refusal{err: failed, text: "line 4: RULE_APPEND failed (Operation not supported)"}, false},
		{"something else", failed, false},
	} {
		if got := mayPass(c.err); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}

// TestCommandsEnd: a command that hangs is stopped, with the children that hold its
// output, and does not keep the agent.
func TestCommandsEnd(t *testing.T) {
	hangs := filepath.Join(t.TempDir(), "hangs")
	if err := os.WriteFile(hangs, []byte("#!/bin/sh\nsleep 30\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := OpenLock(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	const short, long = 100 * time.Millisecond, time.Hour
	for why, most := range map[string]struct{ all, idle time.Duration }{
		"it takes too long": {short, long}, "it is idle for too long": {long, short},
	} {
		c := &Commands{
			path: hangs, restorePath: hangs, savePath: hangs, Variant: Legacy, Family: dataplane.IPv4, Lock: lock, most: most.all, Idle: most.idle,
		}
		for name, do := range map[string]func() error{
			"iptables-restore": func() error { return c.Restore(t.Context(), []byte("*nat\nCOMMIT\n")) },
			"iptables-save":    func() error { return c.scan(t.Context(), func(string, []byte) {}) },
			"listing a chain":  func() error { _, err := c.List(t.Context(), Filter, "SWITCHYARD-INPUT"); return err },
			"the version": func() error {
				ctx, cancel := context.WithTimeout(t.Context(), short)
				defer cancel()
				_, _, err := variantOf(ctx, hangs)
				return err
			},
		} {
			t.Run(why+"/"+name, func(t *testing.T) {
				t.Parallel()
				start := time.Now()
				if err := do(); err == nil || time.Since(start) > 3*pipeMost {
					t.Errorf("%v after %v", err, time.Since(start))
				} else if !strings.Contains(err.Error(), hangs) {
					t.Errorf("the error does not name the command: %v", err)
				}
			})
		}
	}
}

// TestIdle: what a program that hung is given at its next run, until one of its runs
// ends.
func TestIdle(t *testing.T) {
	for _, c := range []struct {
		name    string
		variant Variant
		hung    []string // in turn; "": the program ended
		want    time.Duration
	}{
		{"it did not run", NFT, nil, 10 * time.Second},
		{"it hung", NFT, []string{"restore"}, 2 * time.Second},
		{"it hung and ended", NFT, []string{"restore", ""}, 10 * time.Second},
		{"another program hung", NFT, []string{"save"}, 10 * time.Second},
		{"it may wait for the lock", Legacy, nil, 13 * time.Second},
		{"it hung, and may wait for the lock", Legacy, []string{"restore"}, 5 * time.Second},
	} {
		commands := &Commands{Variant: c.variant, Idle: 10 * time.Second, lockWait: 3}
		for _, program := range c.hung {
			if program == "" {
				commands.noteHung("restore", false)
			} else {
				commands.noteHung(program, true)
			}
		}
		if got := commands.idle("restore"); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestHasRandomFully(t *testing.T) {
	for version, want := range map[string]bool{
		"iptables v1.8.9 (nf_tables)": true, "iptables v1.8.11 (legacy)": true, "ip6tables v1.6.2": true, "iptables v2.0": true,
		"iptables v1.6.1": false, "iptables v1.4.21": false, "": false, "busybox": false,
	} {
		if got := hasRandomFully(version); got != want {
			t.Errorf("%q: %v, want %v", version, got, want)
		}
	}
}
