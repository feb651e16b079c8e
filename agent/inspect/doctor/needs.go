package doctor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// everyone returns what every backend needs.
func everyone() []dataplane.Need {
	return []dataplane.Need{
		{Kind: dataplane.Capability, Name: "CAP_NET_ADMIN", Bit: 12, Lack: dataplane.Serious, Advice: "nothing can be programmed without it"},
		{Kind: dataplane.Sysctl, Name: "net/ipv4/ip_forward", Lack: dataplane.Serious, Values: []string{"1"},
			Advice: "traffic to pods and from outside is not forwarded: sysctl -w net.ipv4.ip_forward=1 (and in /etc/sysctl.d)"},
		{Kind: dataplane.Sysctl, Name: "net/ipv6/conf/all/forwarding", Lack: dataplane.Notable, Values: []string{"1"},
			Advice: "IPv6 traffic is not forwarded; where the cluster has IPv6: sysctl -w net.ipv6.conf.all.forwarding=1"},
		{Kind: dataplane.Sysctl, Name: "net/ipv4/conf/all/rp_filter", Lack: dataplane.Notable, Wrong: "1",
			Advice: "strict: answers that come back through another device than they would be sent to are dropped; 2 (loose) is safe with several devices"},
	}
}

// group returns the group of the report that a kind of Need is in.
func group(k dataplane.NeedKind) string {
	switch k {
	case dataplane.Capability:
		return groupPrivileges
	case dataplane.Programs:
		return groupTools
	case dataplane.Sysctl:
		return groupSettings
	case dataplane.Rival, dataplane.Neighbour:
		return groupNeighbours
	}
	return groupKernel
}

// needed is a Need and the backends that have it; none: all.
type needed struct {
	dataplane.Need
	by []string
}

// gather returns all Needs, each of them once.
func gather(drivers []dataplane.Driver) []needed {
	var out []needed
	for _, n := range everyone() {
		out = append(out, needed{Need: n})
	}
	for _, d := range drivers {
		for _, n := range d.Needs {
			i := slices.IndexFunc(out, func(o needed) bool {
				return o.Kind == n.Kind && o.Name == n.Name && o.Major == n.Major && o.Minor == n.Minor
			})
			if i < 0 {
				out = append(out, needed{n, []string{d.Name}})
			} else if out[i].by != nil {
				out[i].by = append(out[i].by, d.Name)
			}
		}
	}
	return out
}

// checks looks at all that drivers need, and at the neighbours that nobody names.
func (s System) checks(ctx context.Context, drivers []dataplane.Driver) []Check {
	var out, rivals, others []Check
	for _, n := range gather(drivers) {
		found := s.look(ctx, n.Need)
		for i := range found {
			found[i].Group, found[i].For = group(n.Kind), n.by
		}
		switch n.Kind {
		case dataplane.Rival:
			rivals = append(rivals, found...)
		case dataplane.Neighbour:
			others = append(others, found...)
		case dataplane.Version: // the first that is not met
			same := func(c Check) bool { return c.Group == groupKernel && c.Name == n.Name }
			if i := slices.IndexFunc(out, same); i < 0 {
				out = append(out, found...)
			} else if out[i].State == OK {
				out[i] = found[0]
			}
		default:
			out = append(out, found...)
		}
	}
	out = slices.Concat(out, s.neighbours(ctx, rivals), others)
	order := []string{groupPrivileges, groupKernel, groupTools, groupSettings, groupNeighbours}
	slices.SortStableFunc(out, func(a, b Check) int { return slices.Index(order, a.Group) - slices.Index(order, b.Group) })
	return out
}

// stateOf returns how a check comes out where a Need is not met.
func stateOf(l dataplane.Lack) State {
	return map[dataplane.Lack]State{dataplane.Harmless: OK, dataplane.Notable: Note, dataplane.Serious: Problem}[l]
}

// look looks at one Need. There is nothing to say of some.
func (s System) look(ctx context.Context, n dataplane.Need) []Check {
	c := Check{Name: n.Name, State: OK}
	met := true
	switch n.Kind {
	case dataplane.Capability:
		have, ok := s.capabilities()
		if !ok {
			return nil
		}
		met, c.Found = have&(1<<n.Bit) != 0, "yes"
		if !met {
			c.Found, n.Advice = "no", n.Advice+": run as root, or give the container this capability"
		}
	case dataplane.Version:
		major, minor := s.version()
		met, c.Found = major > n.Major || major == n.Major && minor >= n.Minor, s.kernel()
	case dataplane.Mount:
		met, c.Found = s.mounted(n.Type, n.At)
	case dataplane.Module:
		met, c.Found = s.module(n)
	case dataplane.Sysctl:
		value, err := s.Read("/proc/sys/" + n.Name)
		if err != nil {
			return nil // this kernel has it not, or not yet: there is nothing to set
		}
		met = (len(n.Values) == 0 || slices.Contains(n.Values, value)) && (n.Wrong == "" || value != n.Wrong)
		c.Name, c.Found = strings.ReplaceAll(n.Name, "/", "."), value
	case dataplane.Programs:
		return s.programs(ctx, n)
	default:
		f, ok := n.Look(ctx, s)
		if !ok {
			return nil
		}
		c.State, c.Found, c.Advice = stateOf(f.Lack), f.Found, f.Advice
	}
	if !met {
		c.State, c.Advice = stateOf(n.Lack), n.Advice
	}
	return []Check{c}
}

// capabilities returns those that this process has, by the bit; false: nobody knows.
func (s System) capabilities() (have uint64, ok bool) {
	status, err := s.Read("/proc/self/status")
	if err != nil {
		return 0, false
	}
	_, rest, _ := strings.Cut(status, "CapEff:")
	word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	have, err = strconv.ParseUint(strings.TrimSpace(word), 16, 64)
	return have, err == nil
}

// mounted reports whether a type of file system is mounted at a place ("": anywhere),
// and where.
func (s System) mounted(kind, at string) (bool, string) {
	where := s.mounts(kind)
	for _, m := range where {
		if at == "" || m == at {
			return true, "at " + m
		}
	}
	if len(where) > 0 {
		return false, "not at " + at + ", but at " + strings.Join(where, ", ")
	}
	return false, "not mounted"
}

// module reports whether the kernel has a module, and how.
func (s System) module(n dataplane.Need) (bool, string) {
	listed := func(list string) bool {
		text, err := s.Read(filepath.Join("/lib/modules", s.kernel(), list))
		return err == nil && strings.Contains(text, "/"+n.Module+".ko")
	}
	_, err := os.Stat(s.Root + n.Loaded)
	switch {
	case err == nil:
		return true, "there"
	case listed("modules.builtin"):
		return true, "built in"
	case listed("modules.dep"):
		return true, "a module that is not loaded yet"
	}
	return false, "this kernel has none, as far as can be seen"
}

// programs calls each program. One of them has to work.
func (s System) programs(ctx context.Context, n dataplane.Need) []Check {
	var out []Check
	working := false
	for i, name := range n.Programs {
		c := Check{Name: name, State: OK}
		version, err := s.Run(ctx, name, "--version")
		if err != nil {
			c.State, c.Found = Note, "not there"
			if i == 0 {
				c.Advice = n.Advice
			}
		} else {
			c.Found = strings.TrimSpace(version)
			working = true
		}
		out = append(out, c)
	}
	if !working {
		out[0].State = stateOf(n.Lack)
	}
	return out
}
