package main

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/switchyard-io/switchyard/agent/inspect"
)

// verifyInterval of the agent in the tests of drift; a repair must be over
// within it and a bit.
const verifyInterval = time.Second

// TestDriftIsRepairedInTime has somebody remove pieces of what an agent
// programmed, at random: each is found by verify, and repaired by the agent on
// its own within the interval.
func TestDriftIsRepairedInTime(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		remove := map[string]func(*site, *rand.Rand) (string, error){"iptables": removeRule, "ebpf": removeElement}[backend]
		if remove == nil {
			t.Skipf("nothing is known that one can remove from backend %s; its case of the conformance table is in columns_test.go", backend)
		}
		s := newSite(t, backend, []any{serviceCIDR()}, "--verify-interval="+verifyInterval.String())
		r := randomObjects{rand.New(rand.NewPCG(21, 22)), s.lab}
		objects := []any{serviceCIDR(), s.nodeObject()}
		const services, removals = 10, 6
		for i := range services {
			svc := r.service(i)
			objects = append(append(objects, svc), r.slices(svc)...)
		}
		s.write(objects...)
		s.waitFor(services)
		for range removals {
			removed, err := remove(s, r.Rand)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			var first inspect.Verification
			if err := s.askJSON(&first, "verify"); err != nil {
				t.Fatal(err)
			}
			if len(first.Differences) == 0 && !s.repairedSince(start.Add(-time.Second)) {
				t.Errorf("verify does not find what was removed: %s", removed)
			}
			if code := s.verifyUntilWell(start); code != 0 {
				t.Errorf("%s after its removal the agent has not put back %s", time.Since(start), removed)
			}
		}
		var st inspect.Status
		if err := s.askJSON(&st, "status"); err != nil || st.Drift.Repairs < removals || st.Drift.Found < removals {
			t.Errorf("the agent counts %+v, %v; want at least %d repairs", st.Drift, err, removals)
		}
		if log := s.log.String(); !strings.Contains(log, "the kernel is not as it was programmed; repairing it") {
			t.Error("the log says nothing of it")
		}
	})
}

// TestVerifyRepairsOnRequest is the same by hand, and its exit statuses.
func TestVerifyRepairsOnRequest(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		remove := map[string]func(*site, *rand.Rand) (string, error){"ebpf": removeElement}[backend]
		if remove == nil {
			t.Skipf("backend %s repairs at once what one can remove from it", backend)
		}
		s := newSite(t, backend, []any{serviceCIDR()}, "--verify-interval=1h")
		r := randomObjects{rand.New(rand.NewPCG(23, 24)), s.lab}
		svc := r.service(0)
		s.write(append([]any{serviceCIDR(), s.nodeObject(), svc}, r.slices(svc)...)...)
		s.waitFor(1)
		removed, err := remove(s, r.Rand)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			args string
			code int
			says string
		}{
			{"verify", 1, "The kernel differs from what is wanted"},
			{"verify", 1, "`switchyard verify --repair` repairs it now"},
			{"verify --repair", 0, "Repaired."},
			{"verify", 0, "The kernel is as wanted"},
			{"verify --repair", 0, "The kernel is as wanted"},
		} {
			if code, out, errs := s.ask(strings.Fields(step.args)...); code != step.code || !strings.Contains(out, step.says) || errs != "" {
				t.Errorf("after the removal of %s, %s: status %d, %q, %q; want %d and %q", removed, step.args, code, out, errs, step.code, step.says)
			}
		}
	})
}

// verifyUntilWell asks until the kernel is as wanted or the time is over, and
// gives the last exit status.
func (s *site) verifyUntilWell(start time.Time) int {
	// A busy machine, on which audits take long and so are further apart.
	const slack = 20 * time.Second
	for {
		code, _, _ := s.ask("verify")
		if code == 0 || time.Since(start) > verifyInterval+slack {
			return code
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// repairedSince tells whether the agent was faster than the test.
func (s *site) repairedSince(t time.Time) bool {
	var st inspect.Status
	err := s.askJSON(&st, "status")
	return err == nil && st.Drift.LastFound != nil && st.Drift.LastFound.Repaired && st.Drift.LastFound.At.After(t)
}

// removeRule removes a rule of ours.
func removeRule(s *site, random *rand.Rand) (string, error) {
	command := []string{"iptables-nft", "ip6tables-nft"}[random.IntN(2)]
	table := []string{"nat", "filter"}[random.IntN(2)]
	saved, err := s.shell(command + "-save -t " + table)
	if err != nil {
		return "", err
	}
	var ours [][2]string // how to remove it, and the rule
	count := map[string]int{}
	for line := range strings.Lines(saved) {
		rest, is := strings.CutPrefix(line, "-A ")
		if !is {
			continue
		}
		chain, _, _ := strings.Cut(rest, " ")
		count[chain]++
		if strings.Contains(line, "SWITCHYARD-") || strings.HasPrefix(chain, "SY-") {
			ours = append(ours, [2]string{fmt.Sprintf("%s -t %s -D %s %d", command, table, chain, count[chain]), strings.TrimSpace(line)})
		}
	}
	chosen := ours[random.IntN(len(ours))]
	_, err = s.shell(chosen[0])
	return command + " " + chosen[1], err
}

// removeElement removes an element of a map that says what to forward.
func removeElement(s *site, random *rand.Rand) (string, error) {
	name := []string{"frontends", "slots", "services", "node_addresses"}[random.IntN(4)]
	found, err := filepath.Glob(filepath.Join(s.node.PinDir, "*", "*", name))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("map %s is pinned %d times below %s", name, len(found), s.node.PinDir)
	}
	if err != nil {
		return "", err
	}
	m, err := ebpf.LoadPinnedMap(found[0], nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = m.Close() }()
	var keys [][]byte
	var key, value []byte
	for all := m.Iterate(); all.Next(&key, &value); {
		keys = append(keys, slices.Clone(key))
	}
	if len(keys) == 0 {
		return "", fmt.Errorf("map %s is empty", name)
	}
	chosen := keys[random.IntN(len(keys))]
	return fmt.Sprintf("%x of map %s", chosen, name), m.Delete(chosen)
}

// TestDisturbanceIsRepairedAtOnce: whoever flushes the rules beside an agent is
// noticed long before the next audit.
func TestDisturbanceIsRepairedAtOnce(t *testing.T) {
	if !ownNetns(t) {
		return
	}
	for _, c := range []struct{ name, flags, disturb string }{
		{"nftables", "--backend=nftables", "nft flush ruleset"},
		{"iptables-nft", "--backend=iptables --iptables-mode=nft", "nft flush ruleset"},
		{"iptables-nft, one table", "--backend=iptables --iptables-mode=nft", "iptables-nft -t nat -F"},
		{"iptables-legacy", "--backend=iptables --iptables-mode=legacy", "iptables-legacy -t nat -F"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, socket := t.TempDir(), filepath.Join(t.TempDir(), "agent.sock")
			writeFile(t, filepath.Join(dir, "shop.yaml"), shop)
			p := start(t, func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--socket="+socket) },
				append([]string{"run", "--manifests=" + dir, "--hostname-override=node-1", "--cluster-cidr=10.244.0.0/16", "--verify-interval=1h", "--metrics-bind-address="}, strings.Fields(c.flags)...)...)
			client := inspect.Client{Socket: socket}
			status := func() inspect.Status { s, _, _ := client.Status(t.Context()); return s }
			p.within(t, "ready", func() bool { return status().Health.Ready })
			if out, err := exec.Command("sh", "-c", c.disturb).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			begun := time.Now()
			p.within(t, "the repair", func() bool { s := status(); return s.Drift.Repairs > 0 && s.Health.Ready })
			if took := time.Since(begun); took > 6*time.Second {
				t.Errorf("the repair took %v", took)
			}
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			<-p.done
		})
	}
}
