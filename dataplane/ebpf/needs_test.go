package ebpf

import (
	"errors"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestJudgePrograms: whose programs stand in the way at sockets.
func TestJudgePrograms(t *testing.T) {
	for _, c := range []struct {
		names []string
		lack  dataplane.Lack
		found string // "": there is nothing to say
	}{
		{[]string{"sock_connect4"}, dataplane.Harmless, ""},
		{[]string{"sock_connect4", "cil_sock4_connect"}, dataplane.Serious, "cil_sock4_connect on cgroup /c"},
		{[]string{"count_connects", "count_connects"}, dataplane.Notable, "count_connects on cgroup /c"},
	} {
		f, ok := judgePrograms(c.names, "/c")
		if f.Lack != c.lack || f.Found != c.found || ok != (c.found != "") || ok && f.Advice == "" {
			t.Errorf("%q: %+v, %v", c.names, f, ok)
		}
	}
}

// TestJudgePods: pods that are left to packets are worth knowing.
func TestJudgePods(t *testing.T) {
	if f := judgePods(5, nil, nil); f.Lack != dataplane.Harmless || f.Found != "sockets of 5 are translated" {
		t.Errorf("%+v", f)
	}
	f := judgePods(5, map[string]int{"nat rules in OUTPUT (nftables)": 2}, nil)
	if f.Lack != dataplane.Notable || f.Found != "sockets of 5 are translated; 2 left to packets: nat rules in OUTPUT (nftables)" || f.Advice == "" {
		t.Errorf("%+v", f)
	}
	if f := judgePods(0, nil, errors.New("no cgroup")); f.Lack != dataplane.Notable || f.Advice == "" {
		t.Errorf("%+v", f)
	}
}
