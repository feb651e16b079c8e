package costs

import (
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// Allocated is what one change allocated.
type Allocated struct{ Objects, Bytes uint64 }

const (
	// rounds is how often a change is made. The middle one counts: other goroutines of
	// this process may do something else meanwhile.
	rounds = 5
	// settles is how long those goroutines may take to do their part of a change, such
	// as to read what the kernel reports of it.
	settles = 50 * time.Millisecond
)

// typical counts what do allocates, without prepare and undo.
func typical(prepare, do, undo func() error) (Allocated, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties pools
	var objects, bytes []uint64
	for range rounds {
		if err := prepare(); err != nil {
			return Allocated{}, err
		}
		var before, after runtime.MemStats
		time.Sleep(settles)
		runtime.ReadMemStats(&before)
		if err := do(); err != nil {
			return Allocated{}, err
		}
		time.Sleep(settles)
		runtime.ReadMemStats(&after)
		objects, bytes = append(objects, after.Mallocs-before.Mallocs), append(bytes, after.TotalAlloc-before.TotalAlloc)
		if err := undo(); err != nil {
			return Allocated{}, err
		}
	}
	slices.Sort(objects)
	slices.Sort(bytes)
	return Allocated{objects[rounds/2], bytes[rounds/2]}, nil
}

// costs returns both figures of what a change allocated.
func (a Allocated) costs(of string) []Cost {
	return []Cost{
		{What: "allocations of " + of, Unit: "objects", Value: float64(a.Objects)},
		{What: "allocated for " + of, Unit: "bytes", Value: float64(a.Bytes)},
	}
}

// allocations counts what each kind of change allocates, from Snapshot to kernel.
func (c *counted) allocations() error {
	for _, what := range changes() {
		var a Allocated
		if err := c.agent.Call("Costs.Allocations", what, &a); err != nil {
			return err
		}
		c.add(a.costs(string(what))...)
	}
	return nil
}
