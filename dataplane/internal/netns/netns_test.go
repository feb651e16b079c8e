package netns

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// onMainThread calls f in a goroutine that is on the process's main thread, where
// the next goroutine would be as well.
func onMainThread(t *testing.T, f func()) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	found, over := make(chan bool), make(chan struct{})
	for range 100 {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if unix.Gettid() != unix.Getpid() {
				found <- false
				<-over
				return
			}
			runtime.UnlockOSThread()
			f()
			runtime.LockOSThread()
			found <- true
		}()
		if <-found {
			close(over)
			return
		}
	}
	close(over)
	t.Skip("no goroutine got the main thread")
}

// The main thread never ends, so it must stay in the process's network namespace.
func TestMainThreadStaysInItsNamespace(t *testing.T) {
	kerneltest.NeedRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	check := func() error {
		if unix.Gettid() == unix.Getpid() {
			return errors.New("it is on the main thread")
		}
		if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now == before {
			return errors.Join(errors.New("it is in the process's namespace"), err)
		}
		return nil
	}
	onMainThread(t, func() {
		if err := InScratch(check); err != nil {
			t.Error("InScratch:", err)
		}
	})
	onMainThread(t, func() {
		err := InScratch(func() error {
			ns, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer func() { _ = ns.Close() }()
			return Inside(ns, check)
		})
		if err != nil {
			t.Error("Inside:", err)
		}
	})
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != before {
		t.Errorf("the process is in %s, %v; want %s", now, err, before)
	}
}
