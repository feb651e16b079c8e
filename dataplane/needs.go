package dataplane

import "context"

// Need is one thing that a mechanism needs of the machine, or finds there, as data.
// `switchyard doctor` looks at it and prints it, and knows no mechanism.
type Need struct {
	Kind NeedKind
	// Name is what the report calls it. Drivers that need the same thing give it the
	// same Kind and Name, so that it is looked at once.
	Name   string
	Lack   Lack   // how bad it is if this is not as it should be
	Advice string // what is lost then, and what to do

	Bit            int      // of a Capability: its number
	Major, Minor   int      // of a Version: the oldest kernel that will do
	Type, At       string   // of a Mount: the type of file system, and where; At "": anywhere
	Module, Loaded string   // of a Module: its name, and a file that exists while it is loaded
	Programs       []string // of Programs: names, at least one of which must work
	Values         []string // of a Sysctl: those that are right; empty: any that is not Wrong
	Wrong          string
	// Look is of the other kinds: it says what was found, unless there is nothing to say.
	Look func(context.Context, Machine) (f Finding, ok bool)
}

// NeedKind says how a Need is looked at.
type NeedKind string

// The kinds.
const (
	Capability NeedKind = "capability" // of this process
	Version    NeedKind = "version"    // of the kernel
	Mount      NeedKind = "mount"
	Module     NeedKind = "module"
	Feature    NeedKind = "feature" // of the kernel, by Look
	Programs   NeedKind = "programs"
	Sysctl     NeedKind = "sysctl"    // Name is its path below /proc/sys; a kernel without it needs it not
	Rival      NeedKind = "rival"     // another program that may balance Services, by Look
	Neighbour  NeedKind = "neighbour" // any other program, by Look
)

// Lack is how bad it is that a Need is not met.
type Lack int

// The grades.
const (
	Harmless Lack = iota // it is just shown
	Notable              // something is lost
	Serious              // something does not work
)

// Finding is what a Look found.
type Finding struct {
	Lack   Lack // Harmless: all is well
	Found  string
	Advice string
}

// Machine is where a Look looks. Tests look elsewhere.
type Machine interface {
	// Read returns what is in a file of /proc or /sys, without the white space around it.
	Read(path string) (string, error)
}

// NetfilterNeeds returns what every mechanism needs that translates by netfilter.
func NetfilterNeeds() []Need {
	return []Need{
		{Kind: Feature, Name: "conntrack", Look: lookAtConntrack},
		{Kind: Sysctl, Name: "net/bridge/bridge-nf-call-iptables", Lack: Serious, Values: []string{"1"},
			Advice: "a pod does not get through a Service to another pod on the same Linux bridge: sysctl -w net.bridge.bridge-nf-call-iptables=1"},
		{Kind: Sysctl, Name: "net/bridge/bridge-nf-call-ip6tables", Lack: Notable, Values: []string{"1"},
			Advice: "the same for IPv6: sysctl -w net.bridge.bridge-nf-call-ip6tables=1"},
		{Kind: Sysctl, Name: "net/ipv4/conf/all/route_localnet"},
		{Kind: Sysctl, Name: "net/netfilter/nf_conntrack_tcp_be_liberal"},
		{Kind: Sysctl, Name: "net/netfilter/nf_conntrack_acct", Lack: Notable, Values: []string{"1"},
			Advice: "`switchyard get services` shows no bytes: sysctl -w net.netfilter.nf_conntrack_acct=1"},
	}
}

func lookAtConntrack(_ context.Context, m Machine) (Finding, bool) {
	limit, err := m.Read("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return Finding{Notable, "not there yet", "it comes with the first rule that needs it, where the kernel has it: modprobe nf_conntrack"}, true
	}
	count, _ := m.Read("/proc/sys/net/netfilter/nf_conntrack_count")
	return Finding{Found: count + " of " + limit + " entries"}, true
}
