package dataplane

import (
	"iter"
	"slices"
	"sort"
)

// chunkSize is the usual number of ServicePorts in a chunk of Ports. A change
// copies one chunk and the list of chunks: 256 and, at 50,000 ports, some 200
// to 400.
const chunkSize = 256

// Ports is an immutable list of ServicePorts, sorted by ID. A list made from
// another by With shares all chunks that did not change, so that making it and
// comparing the two cost what the change touches and not what the list holds.
// The zero value is an empty list.
type Ports struct {
	chunks [][]*ServicePort // none empty; never written once it is here
	n      int
}

// MakePorts makes a list of ports, in any order. Of two with the same ID the
// later one stays.
func MakePorts(ports ...*ServicePort) Ports {
	sorted := slices.Clone(ports)
	slices.SortStableFunc(sorted, func(a, b *ServicePort) int { return a.ID.Compare(b.ID) })
	unique := sorted[:0]
	for i, p := range sorted {
		if i+1 == len(sorted) || sorted[i+1].ID != p.ID {
			unique = append(unique, p)
		}
	}
	return Ports{chunks: split(nil, unique), n: len(unique)}
}

// Len is the number of ServicePorts.
func (p Ports) Len() int { return p.n }

// All walks the list in order.
func (p Ports) All() iter.Seq[*ServicePort] {
	return func(yield func(*ServicePort) bool) {
		for _, c := range p.chunks {
			for _, port := range c {
				if !yield(port) {
					return
				}
			}
		}
	}
}

// Get finds a ServicePort; nil: there is none.
func (p Ports) Get(id PortID) *ServicePort {
	if len(p.chunks) == 0 {
		return nil
	}
	c := p.chunks[p.chunkOf(id)]
	if i, ok := find(c, id); ok {
		return c[i]
	}
	return nil
}

// With is the list with some ports put in or replaced and others taken out.
// An ID in both is put in. The list itself stays as it is.
func (p Ports) With(put []*ServicePort, remove []PortID) Ports {
	edits := make(map[PortID]*ServicePort, len(put)+len(remove))
	for _, id := range remove {
		edits[id] = nil
	}
	for _, port := range put {
		edits[port.ID] = port
	}
	ids := make([]PortID, 0, len(edits))
	for id := range edits {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, PortID.Compare)

	out := Ports{chunks: make([][]*ServicePort, 0, len(p.chunks)+1), n: p.n}
	at := 0 // chunks before this one are in out
	for len(ids) > 0 {
		c := p.chunkOf(ids[0])
		out.chunks = append(out.chunks, p.chunks[at:min(c, len(p.chunks))]...)
		mine := len(ids)
		if c+1 < len(p.chunks) { // the IDs below the next chunk's first belong to this one
			next := p.chunks[c+1][0].ID
			mine = sort.Search(len(ids), func(i int) bool { return ids[i].Compare(next) >= 0 })
		}
		var old []*ServicePort
		if c < len(p.chunks) {
			old = p.chunks[c]
		}
		merged := edit(old, ids[:mine], edits)
		out.n += len(merged) - len(old)
		out.chunks = joinOrSplit(out.chunks, merged)
		ids, at = ids[mine:], c+1
	}
	if at < len(p.chunks) {
		out.chunks = append(out.chunks, p.chunks[at:]...)
	}
	return out
}

// Replace is to with some ServicePorts as they are in from, or without them where
// they are not in it.
func Replace(to, from Ports, which func(PortID) bool) Ports {
	var put []*ServicePort
	var remove []PortID
	for old, cur := range Diff(from, to) {
		switch id := idOf(old, cur); {
		case !which(id):
		case old != nil:
			put = append(put, old)
		default:
			remove = append(remove, id)
		}
	}
	if len(put)+len(remove) == 0 {
		return to
	}
	return to.With(put, remove)
}

// Diff walks what differs between two lists in order of ID: (old, nil) was
// taken out, (nil, new) put in, (old, new) replaced by another pointer. Chunks
// that the lists share are passed over unread.
func Diff(prev, want Ports) iter.Seq2[*ServicePort, *ServicePort] {
	return func(yield func(*ServicePort, *ServicePort) bool) {
		a, b := cursor{chunks: prev.chunks}, cursor{chunks: want.chunks}
		for {
			if a.skipShared(&b) {
				continue
			}
			old, cur := a.port(), b.port()
			switch {
			case old == nil && cur == nil:
				return
			case old == nil || cur != nil && cur.ID.Compare(old.ID) < 0:
				old = nil
				b.next()
			case cur == nil || old.ID.Compare(cur.ID) < 0:
				cur = nil
				a.next()
			default:
				a.next()
				b.next()
			}
			if old != cur && !yield(old, cur) {
				return
			}
		}
	}
}

// chunkOf is the index of the chunk where id is or belongs; 0 in an empty list.
func (p Ports) chunkOf(id PortID) int {
	i := sort.Search(len(p.chunks), func(i int) bool { return p.chunks[i][0].ID.Compare(id) > 0 })
	return max(i-1, 0)
}

func find(chunk []*ServicePort, id PortID) (int, bool) {
	return slices.BinarySearchFunc(chunk, id, func(p *ServicePort, id PortID) int { return p.ID.Compare(id) })
}

// edit is a copy of a chunk with the edits of ids done; ids are sorted.
func edit(old []*ServicePort, ids []PortID, edits map[PortID]*ServicePort) []*ServicePort {
	merged := make([]*ServicePort, 0, len(old)+len(ids))
	for _, id := range ids {
		i, found := find(old, id)
		merged = append(merged, old[:i]...)
		if port := edits[id]; port != nil {
			merged = append(merged, port)
		}
		if found {
			i++
		}
		old = old[i:]
	}
	return append(merged, old...)
}

// joinOrSplit appends an edited chunk: joined with the one before it where both
// are small, in pieces where it is large. So chunks stay near chunkSize
// whatever comes and goes, and an edit moves no chunk but its own and that one.
func joinOrSplit(chunks [][]*ServicePort, c []*ServicePort) [][]*ServicePort {
	if last := len(chunks) - 1; last >= 0 && len(chunks[last])+len(c) <= chunkSize/2 {
		c = slices.Concat(chunks[last], c)
		chunks = chunks[:last]
	}
	if len(c) <= 2*chunkSize {
		if len(c) == 0 {
			return chunks
		}
		return append(chunks, c)
	}
	return split(chunks, c)
}

func split(chunks [][]*ServicePort, ports []*ServicePort) [][]*ServicePort {
	for c := range slices.Chunk(ports, chunkSize) {
		chunks = append(chunks, c)
	}
	return chunks
}

// cursor is a place in a list's chunks.
type cursor struct {
	chunks [][]*ServicePort
	i      int // in chunks[0]
}

func (c *cursor) port() *ServicePort {
	if len(c.chunks) == 0 {
		return nil
	}
	return c.chunks[0][c.i]
}

func (c *cursor) next() {
	if c.i++; c.i == len(c.chunks[0]) {
		c.chunks, c.i = c.chunks[1:], 0
	}
}

// skipShared passes over one chunk that both lists have at this place.
func (c *cursor) skipShared(d *cursor) bool {
	if len(c.chunks) == 0 || len(d.chunks) == 0 || c.i != 0 || d.i != 0 ||
		len(c.chunks[0]) != len(d.chunks[0]) || &c.chunks[0][0] != &d.chunks[0][0] {
		return false
	}
	c.chunks, d.chunks = c.chunks[1:], d.chunks[1:]
	return true
}
