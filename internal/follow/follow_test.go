package follow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// addresses follows lo's addresses in a network namespace of the test's own.
func addresses(t *testing.T) *Follower {
	t.Helper()
	kerneltest.OwnNetns(t)
	f, err := Start(Source{Protocol: unix.NETLINK_ROUTE, Groups: []uint32{unix.RTNLGRP_IPV4_IFADDR}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// add gives lo the addresses with these numbers.
func add(t *testing.T, from, to int) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for n := from; n < to; n++ {
		a, err := netlink.ParseAddr(fmt.Sprintf("192.0.2.%d/32", n))
		if err == nil {
			err = netlink.AddrAdd(lo, a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// next is what Next returns within a minute.
func next(t *testing.T, f *Follower) ([]Message, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := f.Next(ctx)
	if err != nil && !errors.Is(err, ErrMissed) {
		t.Fatal(err)
	}
	return got, err
}

// heard ends the test unless the next thing that is heard is a new address.
func heard(t *testing.T, f *Follower) {
	t.Helper()
	got, err := next(t, f)
	if err != nil || len(got) != 1 || got[0].Type != unix.RTM_NEWADDR || len(got[0].Body) < unix.SizeofIfAddrmsg {
		t.Fatalf("got %v, %v; want a new address", got, err)
	}
}

// silent ends the test if something is heard.
func silent(t *testing.T, f *Follower) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got, err := f.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, %v; want nothing", got, err)
	}
}

// TestOverflow: what did not fit into the buffer is reported as missed, and the
// follower goes on.
func TestOverflow(t *testing.T) {
	f := addresses(t)
	if err := f.SetBuffer(1); err != nil {
		t.Fatal(err)
	}
	add(t, 1, 100)
	missed := 0
	for waiting := true; waiting; {
		ctx, cancel := context.WithTimeout(t.Context(), 2*errorPause)
		switch _, err := f.Next(ctx); {
		case errors.Is(err, ErrMissed):
			missed++
		case err != nil:
			waiting = false
		}
		cancel()
	}
	if missed != 1 {
		t.Errorf("missed %d times, want 1", missed)
	}
	add(t, 100, 101)
	heard(t, f)
}

// TestRenewal: a subscription that broke is made again, in the namespace that it
// was in, and this counts as having missed something.
func TestRenewal(t *testing.T) {
	f := addresses(t)
	inside := 0
	f.source.In = func(do func() error) error { inside++; return do() }
	_ = f.file.Close()
	for range 2 { // it breaks, and is renewed
		if got, err := next(t, f); err == nil {
			t.Fatalf("got %v; want that something was missed", got)
		}
	}
	add(t, 1, 2)
	heard(t, f)
	if inside != 1 {
		t.Errorf("subscribed %d times, want once more", inside)
	}
}

// TestPause: a paused follower hears nothing, also if it has to subscribe again.
func TestPause(t *testing.T) {
	f := addresses(t)
	if err := f.Pause(); err != nil {
		t.Fatal(err)
	}
	add(t, 1, 2)
	silent(t, f)
	f.drop(f.file)
	if _, err := next(t, f); err == nil {
		t.Fatal("a renewal counts as having missed something")
	}
	add(t, 2, 3)
	silent(t, f)
	if err := f.Resume(); err != nil {
		t.Fatal(err)
	}
	add(t, 3, 4)
	heard(t, f)
}

// TestDrain: what waits is forgotten, and what comes later is not.
func TestDrain(t *testing.T) {
	f := addresses(t)
	add(t, 1, 10)
	if err := f.Drain(); err != nil {
		t.Fatal(err)
	}
	silent(t, f)
	add(t, 10, 11)
	heard(t, f)
}

// TestClose ends a Next that waits, and each later one.
func TestClose(t *testing.T) {
	f := addresses(t)
	done := make(chan error, 1)
	go func() {
		_, err := f.Next(context.Background())
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Next ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Next does not end")
	}
	if _, err := f.Next(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a later Next: %v", err)
	}
}

// TestWhole: an interrupted dump is tried again, and no other.
func TestWhole(t *testing.T) {
	other := errors.New("no memory")
	for _, c := range []struct {
		errs []error
		want error
	}{
		{[]error{nil}, nil},
		{[]error{fmt.Errorf("listing: %w", nl.ErrDumpInterrupted), unix.EINTR, ErrInterrupted, nil}, nil},
		{[]error{ErrInterrupted, other}, other},
	} {
		n := 0
		got, err := Whole(func() (int, error) { n++; return n, c.errs[n-1] })
		if got != len(c.errs) || !errors.Is(err, c.want) {
			t.Errorf("%v: got %d, %v", c.errs, got, err)
		}
	}
	n := 0
	if _, err := Whole(func() (int, error) { n++; return n, ErrInterrupted }); !Interrupted(err) || n != mostDumps {
		t.Errorf("always interrupted: %v after %d", err, n)
	}
}
