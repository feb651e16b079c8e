package takeover

import (
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane/catalog"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

// kubeProxy finds and removes chains as the agent does.
func kubeProxy() KubeProxy {
	return KubeProxy{FindChains: catalog.FindChains, RemoveChains: catalog.RemoveChains}
}

// run runs a command with an input and gives its output.
func run(t *testing.T, input string, words ...string) string {
	t.Helper()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
	return string(out)
}

// others are chains and rules that are not kube-proxy's: kubelet's, a network
// policy's and an operator's.
const others = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:OPERATOR - [0:0]
-A PREROUTING -p tcp --dport 8080 -j OPERATOR
-A OPERATOR -p tcp -j REDIRECT --to-ports 80
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-NWPLCY-4EMGQBJ6ABCDEFGH - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "network policies" -j KUBE-ROUTER-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-ROUTER-FORWARD -j KUBE-NWPLCY-4EMGQBJ6ABCDEFGH
-A KUBE-NWPLCY-4EMGQBJ6ABCDEFGH -j ACCEPT
COMMIT
`

// theirs is what kube-proxy leaves in iptables mode, cut short.
const theirs = `*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-EXT-ERIFXISQEP7F7OF4 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-6E7XQMQ4RAYOWTTM - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-EXT-ERIFXISQEP7F7OF4 -j KUBE-MARK-MASQ
-A KUBE-EXT-ERIFXISQEP7F7OF4 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-ERIFXISQEP7F7OF4
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-SEP-6E7XQMQ4RAYOWTTM -p tcp -m tcp -j DNAT --to-destination ADDR
-A KUBE-SERVICES -p tcp -m tcp --dport 53 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-ERIFXISQEP7F7OF4 -m comment --comment "kube-system/kube-dns:dns-tcp" -j KUBE-SEP-6E7XQMQ4RAYOWTTM
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
`

// saved is all rules, without comments and counters.
func saved(t *testing.T, command string) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(run(t, "", command+"-save")) {
		if !strings.HasPrefix(line, "#") {
			line, _, _ = strings.Cut(line, " [")
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n")
}

func TestRemoveOfEachMode(t *testing.T) {
	kerneltest.NeedMain(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	commands := map[string]string{
		"iptables-nft": "10.244.0.2:53", "ip6tables-nft": "[fd00::2]:53",
		"iptables-legacy": "10.244.0.2:53", "ip6tables-legacy": "[fd00::2]:53",
	}
	before := map[string]string{}
	for command, addr := range commands {
		run(t, others, command+"-restore", "--noflush")
		before[command] = saved(t, command)
		run(t, strings.ReplaceAll(theirs, "ADDR", addr), command+"-restore", "--noflush")
	}
	for _, family := range []string{"ip", "ip6"} {
		run(t, "", "nft", "add", "table", family, "kube-proxy")
		run(t, "", "nft", "add", "chain", family, "kube-proxy", "services")
	}
	run(t, "", "nft", "add", "table", "inet", "kube-proxy") // not kube-proxy's family
	run(t, "", "nft", "add", "table", "ip", "operator")
	tables := func() string { return run(t, "", "nft", "list", "tables") }

	for range 2 { // where there is nothing any more, it is no error
		if err := kubeProxy().Remove(t.Context(), log); err != nil {
			t.Fatal(err)
		}
	}
	for command, want := range before {
		if got := saved(t, command); got != want {
			t.Errorf("%s has\n%s\nwant\n%s", command, got, want)
		}
	}
	for table, want := range map[string]bool{"ip kube-proxy": false, "ip6 kube-proxy": false, "inet kube-proxy": true, "ip operator": true} {
		if got := strings.Contains(tables(), "table "+table+"\n"); got != want {
			t.Errorf("table %s is there: %v, want %v", table, got, want)
		}
	}
}

// TestRemoveOfIPVSMode: a kernel that has no dummy devices has no kube-ipvs0
// either; what counts is the name.
func TestRemoveOfIPVSMode(t *testing.T) {
	kerneltest.NeedMain(t)
	run(t, "", "ip", "link", "add", "kube-ipvs0", "type", "bridge")
	run(t, "", "ip", "link", "add", "kube-bridge", "type", "bridge")
	for _, set := range []string{"KUBE-CLUSTER-IP", "KUBE-LOOP-BACK", "KUBE-NODE-PORT-TCP", "KUBE-6-CLUSTER-IP", "KUBE-SRC-4EMGQBJ6ABCDEFGH", "CLUSTER-IP"} {
		run(t, "", "ipset", "create", set, "hash:ip,port")
	}
	run(t, "", "iptables", "-t", "nat", "-N", "KUBE-SERVICES")
	run(t, "", "iptables", "-t", "nat", "-A", "KUBE-SERVICES", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "-j", "ACCEPT")
	if err := kubeProxy().Remove(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "", "ip", "-br", "link"); strings.Contains(got, "kube-ipvs0") || !strings.Contains(got, "kube-bridge") {
		t.Errorf("devices: %s", got)
	}
	if got, want := strings.Fields(run(t, "", "ipset", "list", "-n")), "KUBE-SRC-4EMGQBJ6ABCDEFGH CLUSTER-IP"; strings.Join(got, " ") != want {
		t.Errorf("sets: %v, want %s", got, want)
	}
}

// TestAChainInUseStays: the portmap plugin can be told to mark packets with
// KUBE-MARK-MASQ.
func TestAChainInUseStays(t *testing.T) {
	kerneltest.NeedMain(t)
	const portmap = `*nat
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
`
	run(t, portmap, "iptables-restore", "--noflush")
	before := saved(t, "iptables")
	run(t, strings.ReplaceAll(theirs, "ADDR", "10.244.0.2:53"), "iptables-restore", "--noflush")
	if err := kubeProxy().Remove(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Fatal(err)
	}
	if got := saved(t, "iptables"); !strings.Contains(got, "-A KUBE-MARK-MASQ -j MARK") || strings.Contains(got, "KUBE-SERVICES") {
		t.Errorf("has\n%s\nbefore kube-proxy came\n%s", got, before)
	}
}

// TestRemoveWhereTablesCannotBeListed: iptables-nft-save leaves a table out in
// which another program has a rule of nftables' own.
func TestRemoveWhereTablesCannotBeListed(t *testing.T) {
	kerneltest.NeedMain(t)
	const foreign = "foreign"
	for command, addr := range map[string]string{"iptables-nft": "10.244.0.2:53", "ip6tables-nft": "[fd00::2]:53"} {
		family := map[string]string{"iptables-nft": "ip", "ip6tables-nft": "ip6"}[command]
		run(t, others, command+"-restore", "--noflush")
		before := saved(t, command)
		run(t, strings.ReplaceAll(theirs, "ADDR", addr), command+"-restore", "--noflush")
		for _, table := range []string{"nat", "filter", "mangle"} {
			run(t, "", "nft", "add", "chain", family, table, foreign)
			run(t, "", "nft", "add", "rule", family, table, foreign, "ct", "mark", "0x7777", "counter")
		}
		if got := saved(t, command); got != "" {
			t.Fatalf("%s-save lists what it should not be able to:\n%s", command, got)
		}
		if err := kubeProxy().Remove(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"nat", "filter", "mangle"} {
			if rules := run(t, "", "nft", "list", "chain", family, table, foreign); !strings.Contains(rules, "ct mark") {
				t.Errorf("the foreign rule in %s is gone: %s", table, rules)
			}
			run(t, "", "nft", "flush", "chain", family, table, foreign)
			run(t, "", "nft", "delete", "chain", family, table, foreign)
		}
		if got := saved(t, command); got != before {
			t.Errorf("%s has\n%s\nwant\n%s", command, got, before)
		}
	}
}
