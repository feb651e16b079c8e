package doctor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// neighbours are other programs that balance Services, and what they left.
func (s System) neighbours(ctx context.Context) []Check {
	var out []Check
	found := func(state State, name, what, advice string) {
		out = append(out, Check{Group: groupNeighbours, Name: name, State: state, Found: what, Advice: advice})
	}
	if pids := s.processes("kube-proxy"); len(pids) > 0 {
		found(Problem, "kube-proxy", "it runs (process "+strings.Join(pids, ", ")+")",
			"two programs balance the same Services: take its DaemonSet off this node")
	}
	const leftovers = "kube-proxy's rules decide before ours or after them: `switchyard cleanup --kube-proxy` while no agent runs, --take-over, or a restart of the node"
	for _, command := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		if n := s.kubeChains(ctx, command); n > 0 {
			found(Problem, "kube-proxy's chains", fmt.Sprintf("%d KUBE-… chains of Services in %s", n, strings.TrimSuffix(command, "-save")), leftovers)
		}
	}
	if tables, err := s.Run(ctx, "nft", "list", "tables"); err == nil && strings.Contains(tables, " kube-proxy") {
		found(Problem, "kube-proxy's nft table", "there is a table kube-proxy", leftovers)
	}
	if devices, err := s.Devices(); err == nil && slices.Contains(devices, "kube-ipvs0") {
		found(Problem, "kube-proxy's device", "kube-ipvs0 has the Services' addresses", "packets to ClusterIPs end at this node: ip link delete kube-ipvs0")
	}
	out = append(out, s.socketPrograms()...)
	if len(out) == 0 {
		found(OK, "other Service proxies", "none found", "")
	}
	return slices.Concat(out, s.firewall(), s.pods())
}

// firewall tells what drops connections that nobody accepts.
func (s System) firewall() []Check {
	if s.Firewall == nil {
		return nil
	}
	c := Check{Group: groupNeighbours, Name: "host firewall", State: OK, Found: "iptables' FORWARD and INPUT drop nothing by themselves"}
	rules, err := s.Firewall()
	switch {
	case err != nil:
		c.State, c.Found = Problem, err.Error()
		c.Advice = "if FORWARD or INPUT drops what nobody accepts, connections from outside do not reach Services"
	case len(rules) > 0:
		c.State, c.Found = Note, strings.Join(rules, "; ")
		c.Advice = "the agent lets through what is masqueraded (NodePorts, external IPs, load balancers) and health checks; " +
			"accept pods' own addresses where the CNI does not: Services with policy Local and pods' connections need it"
	}
	return []Check{c}
}

// pods tells which way the connections of pods take.
func (s System) pods() []Check {
	if s.Pods == nil {
		return nil
	}
	c := Check{Group: groupNeighbours, Name: "pods", State: OK, For: []string{forEBPF}}
	translated, left, err := s.Pods()
	if err != nil {
		c.State, c.Found, c.Advice = Note, "could not be looked into: "+err.Error(), "--socket-lb=auto leaves the sockets of pods to packets"
		return []Check{c}
	}
	words := []string{fmt.Sprintf("sockets of %d are translated", translated)}
	for _, why := range slices.Sorted(maps.Keys(left)) {
		words = append(words, fmt.Sprintf("%d left to packets: %s", left[why], why))
	}
	c.Found = strings.Join(words, "; ")
	if len(left) > 0 {
		c.State, c.Advice = Note, "pods that translate their own connections (a service mesh) see Services' addresses; --socket-lb=all would pass their rules by"
	}
	return []Check{c}
}

// processes are the ids of the processes of a name.
func (s System) processes(name string) []string {
	comms, _ := filepath.Glob(s.Root + "/proc/[0-9]*/comm") // the pattern is right
	var pids []string
	for _, path := range comms {
		b, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(b)) == name {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

// kubeChains counts the chains of kube-proxy; those of kubelet are not among them.
func (s System) kubeChains(ctx context.Context, command string) int {
	if strings.Contains(command, "legacy") && !s.legacyInUse(command) {
		return 0 // to list legacy tables would load their modules
	}
	text, err := s.Run(ctx, command, "-t", "nat")
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(text) {
		for _, prefix := range []string{":KUBE-SERVICES", ":KUBE-SVC-", ":KUBE-SEP-", ":KUBE-EXT-", ":KUBE-NODEPORTS"} {
			if strings.HasPrefix(line, prefix) {
				n++
			}
		}
	}
	return n
}

func (s System) legacyInUse(command string) bool {
	file := "/proc/net/ip_tables_names"
	if strings.HasPrefix(command, "ip6") {
		file = "/proc/net/ip6_tables_names"
	}
	tables, err := s.read(file)
	return err == nil && strings.Contains(tables, "nat")
}

// socketPrograms are other programs that translate sockets.
func (s System) socketPrograms() []Check {
	roots := s.mounts("cgroup2")
	if len(roots) == 0 {
		return nil
	}
	names, err := s.CgroupPrograms(roots[0])
	if err != nil {
		return []Check{{Group: groupNeighbours, Name: "socket programs", State: Note, Found: "could not be listed: " + err.Error(), For: []string{forEBPF}}}
	}
	var others []string
	for _, n := range names {
		if !strings.HasPrefix(n, "sock_") && !slices.Contains(others, n) { // ours
			others = append(others, n)
		}
	}
	if len(others) == 0 {
		return nil
	}
	slices.Sort(others)
	c := Check{Group: groupNeighbours, Name: "socket programs", State: Note, Found: strings.Join(others, ", ") + " on cgroup " + roots[0],
		Advice: "another program sees sockets as they connect; if it balances Services, one of the two must go"}
	whose := map[string]string{"cil_": "Cilium", "calico_": "Calico", "cali_": "Calico"}
	for prefix, name := range whose {
		if slices.ContainsFunc(others, func(n string) bool { return strings.HasPrefix(n, prefix) }) {
			c.State = Problem
			c.Advice = name + " balances Services at sockets, before any backend of ours: switch its kube-proxy replacement off"
		}
	}
	return []Check{c}
}
