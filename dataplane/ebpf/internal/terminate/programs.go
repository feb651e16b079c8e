package terminate

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/switchyard-io/switchyard/dataplane"
)

// byPrograms ends sockets in iterators (kernel 6.5).
type byPrograms struct {
	objects terminateObjects
	udp     *link.Iter
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
	if b.udp, err = link.AttachIter(link.IterOptions{Program: b.objects.EndUdp}); err != nil {
		return nil, fmt.Errorf("making the iterator over UDP sockets: %w", err)
	}
	if b.tcp, err = link.AttachIter(link.IterOptions{Program: b.objects.EndTcp}); err != nil {
		return nil, fmt.Errorf("making the iterator over TCP sockets: %w", err)
	}
	return b, nil
}

func (b *byPrograms) begin(gone []Endpoint) error {
	if err := b.empty(); err != nil {
		return err
	}
	for _, e := range gone {
		if err := b.objects.Gone.Put(toKey(e), uint32(0)); err != nil {
			return fmt.Errorf("noting endpoint %s: %w", e.Addr, err)
		}
	}
	return nil
}

// empty forgets the endpoints of before.
func (b *byPrograms) empty() error {
	var keys []terminateGoneKey
	var key terminateGoneKey
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

// sockets reads an iterator to its end; it covers the network namespace in
// which it was opened.
func (b *byPrograms) sockets(protocol dataplane.Protocol) error {
	it := b.udp
	if protocol == dataplane.TCP {
		it = b.tcp
	}
	r, err := it.Open()
	if err != nil {
		return wrap(protocol, err)
	}
	_, err = io.Copy(io.Discard, r)
	return wrap(protocol, errors.Join(err, r.Close()))
}

func (b *byPrograms) ended() (int, error) {
	total := 0
	var key terminateGoneKey
	var n uint32
	all := b.objects.Gone.Iterate()
	for all.Next(&key, &n) {
		total += int(n)
	}
	return total, all.Err()
}

func (b *byPrograms) close() error {
	var errs []error
	for _, l := range []*link.Iter{b.udp, b.tcp} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(append(errs, b.objects.Close())...)
}
