package policy

import (
	"net/netip"
	"slices"
)

// Disjoint returns the fewest prefixes that cover the same addresses, sorted.
// Kernels refuse ranges that overlap, so that no list in a Snapshot has them.
func Disjoint(in []netip.Prefix) []netip.Prefix {
	in = slices.Clone(in)
	slices.SortFunc(in, netip.Prefix.Compare)
	out := in[:0]
	for _, p := range in {
		// The wider of two that start alike is sorted first.
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue
		}
		out = append(out, p)
		for n := len(out); n > 1 && halves(out[n-2], out[n-1]); n = len(out) {
			out[n-2] = wider(out[n-2])
			out = out[:n-1]
		}
	}
	return slices.Clip(out)
}

// halves reports whether two different prefixes make up the next wider one.
func halves(a, b netip.Prefix) bool {
	return a.Bits() == b.Bits() && a.Bits() > 0 && wider(a) == wider(b)
}

// wider returns the prefix of one bit less.
func wider(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
}
