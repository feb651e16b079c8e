package nft

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/google/nftables"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestReadAmongChanges: our own changes do not make a table be read again, those of
// others do.
func TestReadAmongChanges(t *testing.T) {
	if !(kerneltest.Child{}).Again(t) {
		return
	}
	spec := Spec{Name: "ours", Sets: []Set{{Name: "numbers", Key: nftables.TypeIPAddr}}}
	table := NewTable(dataplane.IPv4, spec, &Counts{})
	w, err := StartWatch(slog.New(slog.DiscardHandler), []*Table{table})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	all := NewChange()
	all.Remake = true
	for i := range uint32(5_000) {
		all.Put[Element{dataplane.IPv4, "numbers", string(binary.BigEndian.AppendUint32(nil, i))}] = ""
	}
	if err := table.Write(&all, nil); err != nil {
		t.Fatal(err)
	}
	theirs := NewTable(dataplane.IPv4, Spec{Name: "theirs"}, &Counts{})
	defer func() { _ = errors.Join(theirs.Close(), table.Close()) }()
	if err := theirs.Write(&Change{Remake: true}, nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func() error
		reads  func(n int) bool
	}{
		{"nobody", nil, func(n int) bool { return n == 1 }},
		{"we", func() error { return makeAndRemove(table) }, func(n int) bool { return n == 1 }},
		{"others", func() error { return makeAndRemove(theirs) }, func(n int) bool { return n > 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reader := w.Reader(table)
			defer func() { _ = reader.Close() }()
			stop := keepDoing(t, tc.change)
			s, err := reader.Read()
			stop()
			if err != nil {
				t.Fatal(err)
			}
			if n := len(s.Elements); n != len(all.Put) {
				t.Errorf("%d elements; want %d", n, len(all.Put))
			}
			if n := reader.reads; !tc.reads(n) {
				t.Errorf("the table was read %d times", n)
			}
		})
	}
}

// makeAndRemove makes two transactions that leave a table as it was.
func makeAndRemove(t *Table) error {
	return errors.Join(t.Write(&Change{Chains: map[string][]Rule{"some": nil}}, nil), t.Write(&Change{OldChains: []string{"some"}}, nil))
}

// keepDoing does something again and again until it is stopped; nil: nothing.
func keepDoing(t *testing.T, do func() error) (stop func()) {
	if do == nil {
		return func() {}
	}
	end, first := make(chan struct{}), make(chan struct{})
	var begun sync.Once
	var done sync.WaitGroup
	done.Go(func() {
		for {
			if err := do(); err != nil {
				t.Error(err)
				return
			}
			begun.Do(func() { close(first) })
			select {
			case <-end:
				return
			default:
			}
		}
	})
	<-first
	return func() { close(end); done.Wait() }
}
