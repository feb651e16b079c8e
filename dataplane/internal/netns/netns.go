// Package netns keeps backends in the network namespace that they are meant for, and gives their probes one to try things in.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs f on a thread that ends with it. f may take that thread to any
// network namespace.
func OnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end, and its namespace counts as the process's.
			// While it waits here, the next goroutine gets another one.
			done <- OnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// InScratch runs f in a network namespace that ends with it.
func InScratch(f func() error) error {
	return OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		return f()
	})
}

// Inside runs f in the network namespace that an open file stands for.
func Inside(ns *os.File, f func() error) error {
	return OnThread(func() error {
		if err := Enter(ns); err != nil {
			return err
		}
		return f()
	})
}

// Enter moves this thread to the network namespace that an open file stands for.
// Call it in OnThread only.
func Enter(ns *os.File) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering network namespace %s: %w", ns.Name(), err)
	}
	return nil
}

// CheckThread refuses a thread that is in another network namespace than its
// process: other goroutines, which a backend uses, would not be in it.
func CheckThread() error {
	thread, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("finding the network namespace: %w", err)
	}
	process, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("finding the network namespace: %w", err)
	}
	if thread != process {
		return errors.New("the backend programs the network namespace of its process, and this thread is in another one")
	}
	return nil
}
