package dataplane

import "slices"

// Fallback returns what stays of a ServicePort's earlier form while its new form
// is refused: the frontends that the new form has, too. Any other may be another
// ServicePort's by now, and would take its connections. nil: nothing stays.
func Fallback(old, refused *ServicePort) *ServicePort {
	if old == nil || refused == nil {
		return nil
	}
	kept := func(f Frontend) bool {
		return slices.ContainsFunc(refused.Frontends, func(g Frontend) bool { return g.Addr == f.Addr })
	}
	if !slices.ContainsFunc(old.Frontends, func(f Frontend) bool { return !kept(f) }) {
		return old
	}
	out := *old
	out.Frontends = slices.DeleteFunc(slices.Clone(old.Frontends), func(f Frontend) bool { return !kept(f) })
	if len(out.Frontends) == 0 {
		return nil
	}
	return &out
}

// Refuse takes those ServicePorts out of want that a Backend cannot program and says
// why. It asks for those that differ from before, which may be nil. What is refused
// stays as it was, as far as Fallback allows.
func Refuse(before, want *Snapshot, why func(*ServicePort) error) (accepted *Snapshot, failed []PortError) {
	var keep []*ServicePort
	var drop []PortID
	for old, cur := range Diff(portsOf(before), want.Ports) {
		if cur == nil {
			continue
		}
		err := why(cur)
		if err == nil {
			continue
		}
		failed = append(failed, PortError{ID: cur.ID, Err: err})
		if old = Fallback(old, cur); old != nil {
			keep = append(keep, old)
		} else {
			drop = append(drop, cur.ID)
		}
	}
	if len(failed) == 0 {
		return want, nil
	}
	out := *want
	out.Ports = want.Ports.With(keep, drop)
	return &out, failed
}
