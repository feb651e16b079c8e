// Package buckettree is a prefix tree of small nodes with a canonical shape: what to compare first so that few comparisons find one of many keys.
//
// A key is a string of digits (small numbers, one a byte). A node with at most Bucket keys
// is a leaf that lists them. A larger one is an inner node: it skips what all
// its keys begin with and has a child for each next digit. The shape depends
// only on the set of keys, never on the order in which they came, so a tree that
// was edited equals one that was built anew. An edit tells which nodes changed.
package buckettree

import (
	"iter"
	"slices"
	"strings"
)

// Bucket is the largest number of keys in a leaf above the greatest depth.
const Bucket = 16

// Entry is a key and what it leads to.
type Entry struct {
	Key   string
	Value string
}

// compare orders entries by key, and a key after those that it begins: who
// tries entries in order finds the most precise one first.
func compare(a, b Entry) int {
	switch {
	case a.Key == b.Key:
		return 0
	case strings.HasPrefix(a.Key, b.Key):
		return -1
	case strings.HasPrefix(b.Key, a.Key):
		return 1
	}
	return strings.Compare(a.Key, b.Key)
}

// Node is one node as it is now. Its slices must not be written.
type Node struct {
	// ID are the digits that its parent has checked; "" is the root.
	ID string
	// Entries of a leaf, in the order in which to try them. An inner node has at
	// most one: the key that all its other keys begin with, to be tried last.
	Entries []Entry
	// Children are the IDs of an inner node's children, sorted.
	Children []string
}

// Tree is a set of entries. It is not safe for concurrent use.
type Tree struct {
	maxDepth int
	root     *node
	nodes    map[string]*node
	changed  map[string]struct{}
}

type node struct {
	id      string
	depth   int
	n       int     // entries in and below it
	entries []Entry // as in Node
	prefix  string  // of an inner node: what all its keys begin with
	kids    []*node // none: a leaf
}

// New makes an empty tree whose nodes are at most maxDepth steps below the
// root; a node at that depth is a leaf however many keys it has.
func New(maxDepth int) *Tree {
	t := &Tree{maxDepth: maxDepth, nodes: map[string]*node{}, changed: map[string]struct{}{}}
	t.root = &node{}
	t.nodes[""] = t.root
	t.changed[""] = struct{}{}
	return t
}

// Len is the number of entries.
func (t *Tree) Len() int { return t.root.n }

// Get finds the value of a key.
func (t *Tree) Get(key string) (string, bool) {
	nd := t.root
	for {
		if i, found := slices.BinarySearchFunc(nd.entries, Entry{Key: key}, compare); found {
			return nd.entries[i].Value, true
		}
		if len(nd.kids) == 0 || !strings.HasPrefix(key, nd.prefix) || len(key) == len(nd.prefix) {
			return "", false
		}
		i, found := nd.kid(key)
		if !found {
			return "", false
		}
		nd = nd.kids[i]
	}
}

// Put adds an entry or replaces its value.
func (t *Tree) Put(key, value string) {
	old, found := t.Get(key)
	if found && old == value {
		return
	}
	t.put(t.root, Entry{key, value}, !found)
}

// Delete takes a key out, if it is in.
func (t *Tree) Delete(key string) {
	if _, found := t.Get(key); found {
		t.remove(t.root, key)
	}
}

// Changed gives the IDs of the nodes that an edit has written or removed since
// the last call, sorted.
func (t *Tree) Changed() []string {
	ids := make([]string, 0, len(t.changed))
	for id := range t.changed {
		ids = append(ids, id)
	}
	t.changed = map[string]struct{}{} // to clear it would keep its size, which the next call goes through
	slices.Sort(ids)
	return ids
}

// Node gives a node by its ID; false: there is none.
func (t *Tree) Node(id string) (Node, bool) {
	nd, ok := t.nodes[id]
	if !ok {
		return Node{}, false
	}
	return nd.view(), true
}

// All walks the entries in no particular order.
func (t *Tree) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, nd := range t.nodes {
			for _, e := range nd.entries {
				if !yield(e) {
					return
				}
			}
		}
	}
}

func (nd *node) view() Node {
	v := Node{ID: nd.id, Entries: nd.entries}
	for _, k := range nd.kids {
		v.Children = append(v.Children, k.id)
	}
	return v
}

// kid is where the child for a key is, or belongs.
func (nd *node) kid(key string) (int, bool) {
	digit := key[len(nd.prefix)]
	return slices.BinarySearchFunc(nd.kids, digit, func(k *node, digit byte) int {
		return int(k.id[len(nd.prefix)]) - int(digit)
	})
}

func (t *Tree) touch(nd *node) { t.changed[nd.id] = struct{}{} }

// put adds or replaces an entry below nd.
func (t *Tree) put(nd *node, e Entry, added bool) {
	if added {
		nd.n++
	}
	switch {
	case len(nd.kids) == 0:
		nd.entries = withEntry(nd.entries, e)
		t.touch(nd)
		if nd.n > Bucket && nd.depth < t.maxDepth {
			t.rebuild(nd, nd.entries)
		}
	case !strings.HasPrefix(e.Key, nd.prefix): // the keys begin alike for fewer digits now
		t.rebuild(nd, append(nd.collect(nil), e))
	case len(e.Key) == len(nd.prefix):
		nd.entries = []Entry{e}
		t.touch(nd)
	default:
		i, found := nd.kid(e.Key)
		if !found {
			leaf := &node{id: e.Key[:len(nd.prefix)+1], depth: nd.depth + 1}
			nd.kids = slices.Insert(slices.Clone(nd.kids), i, leaf)
			t.nodes[leaf.id] = leaf
			t.touch(nd)
		}
		t.put(nd.kids[i], e, added)
	}
}

// remove takes out a key that is below nd.
func (t *Tree) remove(nd *node, key string) {
	nd.n--
	switch {
	case len(nd.kids) == 0 || len(key) == len(nd.prefix):
		nd.entries = slices.DeleteFunc(slices.Clone(nd.entries), func(e Entry) bool { return e.Key == key })
		t.touch(nd)
	default:
		i, _ := nd.kid(key)
		kid := nd.kids[i]
		t.remove(kid, key)
		if kid.n == 0 {
			nd.kids = slices.Delete(slices.Clone(nd.kids), i, i+1)
			delete(t.nodes, kid.id)
			t.touch(nd)
		}
	}
	if len(nd.kids) > 0 && (nd.n <= Bucket || len(nd.kids) == 1 && len(nd.entries) == 0) {
		t.rebuild(nd, nd.collect(nil)) // a leaf again, or the keys begin alike for more digits
	}
	if nd.id == "" && nd.n == 0 {
		nd.entries = nil
	}
}

// rebuild shapes nd anew from all its entries. Nodes that come out as they were
// do not count as changed.
func (t *Tree) rebuild(nd *node, entries []Entry) {
	before := map[string]Node{}
	t.forget(nd, before)
	*nd = *t.build(nd.id, nd.depth, slices.Clone(entries))
	t.learn(nd, before)
	for id := range before { // those that are no more
		t.changed[id] = struct{}{}
	}
}

func (t *Tree) forget(nd *node, into map[string]Node) {
	into[nd.id] = nd.view()
	delete(t.nodes, nd.id)
	for _, k := range nd.kids {
		t.forget(k, into)
	}
}

func (t *Tree) learn(nd *node, before map[string]Node) {
	t.nodes[nd.id] = nd
	old, was := before[nd.id]
	if now := nd.view(); !was || !slices.Equal(old.Entries, now.Entries) || !slices.Equal(old.Children, now.Children) {
		t.touch(nd)
	}
	delete(before, nd.id)
	for _, k := range nd.kids {
		t.learn(k, before)
	}
}

// build shapes a node and all below it. It keeps entries.
func (t *Tree) build(id string, depth int, entries []Entry) *node {
	slices.SortFunc(entries, compare)
	nd := &node{id: id, depth: depth, n: len(entries)}
	if len(entries) <= Bucket || depth >= t.maxDepth {
		nd.entries = entries
		return nd
	}
	nd.prefix = commonPrefix(entries[0].Key, entries)
	for len(entries) > 0 {
		if len(entries[0].Key) == len(nd.prefix) {
			nd.entries, entries = entries[:1:1], entries[1:]
			continue
		}
		edge := entries[0].Key[:len(nd.prefix)+1]
		n := 1
		for n < len(entries) && strings.HasPrefix(entries[n].Key, edge) {
			n++
		}
		nd.kids = append(nd.kids, t.build(edge, depth+1, entries[:n:n]))
		entries = entries[n:]
	}
	return nd
}

func commonPrefix(prefix string, entries []Entry) string {
	for _, e := range entries {
		n := 0
		for n < len(prefix) && n < len(e.Key) && prefix[n] == e.Key[n] {
			n++
		}
		prefix = prefix[:n]
	}
	return prefix
}

// collect appends all entries in and below nd.
func (nd *node) collect(to []Entry) []Entry {
	to = append(to, nd.entries...)
	for _, k := range nd.kids {
		to = k.collect(to)
	}
	return to
}

// withEntry is a sorted copy of entries with e in it. It copies since a Node
// that was given out may share the slice.
func withEntry(entries []Entry, e Entry) []Entry {
	i, found := slices.BinarySearchFunc(entries, e, compare)
	out := make([]Entry, 0, len(entries)+1)
	out = append(out, entries[:i]...)
	out = append(out, e)
	if found {
		i++
	}
	return append(out, entries[i:]...)
}
