package terminate

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/programs"
)

// byPrograms ends sockets in iterators (kernel 6.5).
type byPrograms struct {
	objects terminateObjects
	tcp     *link.Iter
}

func openPrograms(peers *ebpf.Map) (_ *byPrograms, err error) {
	spec, err := loadTerminate()
	if err != nil {
		return nil, fmt.Errorf("reading the programs: %w", err)
	}
	b := &byPrograms{}
	options := &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{terminateMapPeers: peers}}
	if err := spec.LoadAndAssign(&b.objects, options); err != nil {
		return nil, fmt.Errorf("loading the programs: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.tcp, err = link.AttachIter(link.IterOptions{Program: b.objects.EndTcp}); err != nil {
		return nil, fmt.Errorf("making the iterator over TCP sockets: %w", err)
	}
	return b, nil
}

func (b *byPrograms) most() int { return int(b.objects.Gone.MaxEntries()) }

func (b *byPrograms) begin(gone []Endpoint) error {
	if err := b.empty(); err != nil {
		return err
	}
	for _, e := range gone {
		if err := b.objects.Gone.Put(e.Key(), uint32(0)); err != nil {
			return fmt.Errorf("noting endpoint %s: %w", e.Addr, err)
		}
	}
	return nil
}

// empty forgets the endpoints of before.
func (b *byPrograms) empty() error {
	var keys []programs.SockEndpointKey
	var key programs.SockEndpointKey
	var n uint32
	all := b.objects.Gone.Iterate()
	for all.Next(&key, &n) {
		keys = append(keys, key)
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("reading the gone map: %w", err)
	}
	for _, k := range keys {
		if err := b.objects.Gone.Delete(k); err != nil {
			return fmt.Errorf("emptying the gone map: %w", err)
		}
	}
	return nil
}

// sockets reads the iterator to its end; it covers the network namespace in
// which it was opened.
func (b *byPrograms) sockets() error {
	r, err := b.tcp.Open()
	if err == nil {
		_, err = io.Copy(io.Discard, r)
		err = errors.Join(err, r.Close())
	}
	if err != nil {
		return fmt.Errorf("ending TCP sockets: %w", err)
	}
	return nil
}

func (b *byPrograms) ended() (int, error) {
	total := 0
	var key programs.SockEndpointKey
	var n uint32
	all := b.objects.Gone.Iterate()
	for all.Next(&key, &n) {
		total += int(n)
	}
	return total, all.Err()
}

func (b *byPrograms) close() error {
	if b.tcp == nil {
		return b.objects.Close()
	}
	return errors.Join(b.tcp.Close(), b.objects.Close())
}
