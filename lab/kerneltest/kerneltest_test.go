package kerneltest

import (
	"net"
	"os"
	"testing"
)

// recorder is a test that only notes how it ends.
type recorder struct {
	testing.TB
	failed, skipped bool
}

func (r *recorder) Helper()      {}
func (r *recorder) Fatal(...any) { r.failed = true }
func (r *recorder) Skip(...any)  { r.skipped = true }

// TestUnable: what cannot run is skipped, or fails where all must run.
func TestUnable(t *testing.T) {
	for required, fails := range map[string]bool{"": false, "1": true} {
		t.Setenv("REQUIRE_KERNEL", required)
		r := &recorder{}
		if Unable(r, "no such kernel"); r.failed != fails || !fails && !r.skipped {
			t.Errorf("REQUIRE_KERNEL=%s: failed %v, skipped %v", required, r.failed, r.skipped)
		}
	}
}

// TestOwnNetns and TestChild: each has a namespace with nothing but lo.
func TestOwnNetns(t *testing.T) {
	OwnNetns(t)
	alone(t)
}

func TestChild(t *testing.T) {
	t.Run("below", func(t *testing.T) {
		Child{Env: []string{"FROM=parent"}}.Run(t, func() {
			alone(t)
			if os.Getenv("FROM") != "parent" {
				t.Error("the environment is not passed on")
			}
		})
	})
}

func alone(t *testing.T) {
	t.Helper()
	LoopbackUp(t)
	links, err := net.Interfaces()
	if err != nil || len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("devices: %v, %v; want lo alone, up", links, err)
	}
}
