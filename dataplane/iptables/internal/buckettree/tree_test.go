package buckettree

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestCanonical edits a tree at random and demands that it always is, node by
// node, the tree built from the same entries in one go, and that Changed names
// all nodes that differ from the step before.
func TestCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		depth := rapid.IntRange(1, 6).Draw(t, "depth")
		// Few distinct digits and lengths make splits, merges and keys that
		// begin other keys frequent.
		keys := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string {
			n := rapid.SampledFrom([]int{3, 5, 5, 5}).Draw(t, "length")
			b := make([]byte, n)
			for i := range b {
				b[i] = rapid.SampledFrom([]byte{0, 0, 0, 1, 2, 15}).Draw(t, "digit")
			}
			return string(b)
		}), 1, 150, rapid.ID[string]).Draw(t, "keys")
		tree, want := New(depth), map[string]string{}
		tree.Changed()
		before := dump(tree)
		for step := range rapid.IntRange(1, 300).Draw(t, "steps") {
			key := rapid.SampledFrom(keys).Draw(t, "key")
			if _, in := want[key]; in && rapid.Bool().Draw(t, "remove") {
				tree.Delete(key)
				delete(want, key)
			} else {
				value := fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "value"))
				tree.Put(key, value)
				want[key] = value
			}
			after := dump(tree)
			if fresh := dump(built(depth, want)); !maps.Equal(after, fresh) {
				t.Fatalf("step %d: edited\n%v\nbuilt\n%v", step, after, fresh)
			}
			changed := tree.Changed()
			for id := range both(before, after) {
				if _, told := slices.BinarySearch(changed, id); before[id] != after[id] && !told {
					t.Fatalf("step %d: node %x changed and Changed does not say so", step, id)
				}
			}
			before = after
		}
	})
}

// TestFind demands that going down the tree as a packet does finds each key.
func TestFind(t *testing.T) {
	tree := New(8)
	for i := range 5000 {
		tree.Put(key(i*7919%65536), fmt.Sprint(i))
	}
	worst := 0
	for i := range 5000 {
		k := key(i * 7919 % 65536)
		if v, ok := tree.Get(k); !ok || v != fmt.Sprint(i) {
			t.Fatalf("Get(%x) = %q, %v", k, v, ok)
		}
		worst = max(worst, comparisons(tree, k))
	}
	if tree.Len() != 5000 {
		t.Errorf("Len() = %d, want 5000", tree.Len())
	}
	if worst > 4*Bucket {
		t.Errorf("the worst of 5,000 keys takes %d comparisons, want at most %d", worst, 4*Bucket)
	}
}

func key(i int) string {
	return string([]byte{byte(i >> 12 & 15), byte(i >> 8 & 15), byte(i >> 4 & 15), byte(i & 15)})
}

func comparisons(t *Tree, key string) int {
	n, id := 0, ""
	for {
		nd, _ := t.Node(id)
		i := slices.IndexFunc(nd.Children, func(c string) bool { return strings.HasPrefix(key, c) })
		if i < 0 {
			return n + 1 + slices.IndexFunc(nd.Entries, func(e Entry) bool { return e.Key == key })
		}
		n, id = n+i+1, nd.Children[i]
	}
}

func built(depth int, want map[string]string) *Tree {
	t := New(depth)
	var entries []Entry
	for k, v := range want {
		entries = append(entries, Entry{k, v})
	}
	t.rebuild(t.root, entries)
	return t
}

func dump(t *Tree) map[string]string {
	out := map[string]string{}
	for id := range t.nodes {
		nd, _ := t.Node(id)
		out[id] = fmt.Sprintf("%x %q", nd.Children, nd.Entries)
	}
	return out
}

func both(a, b map[string]string) map[string]struct{} {
	out := map[string]struct{}{}
	for id := range a {
		out[id] = struct{}{}
	}
	for id := range b {
		out[id] = struct{}{}
	}
	return out
}
