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
