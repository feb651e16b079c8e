package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// machine is a virtual machine to boot.
type machine struct {
	kernel kernel
	image  string
	memory string // as QEMU has it
	limit  time.Duration
}

// commandLine is the kernel's. A fault of the kernel ends the machine at once.
// Nothing protects the emulated processor from what only real ones have, and
// its clock is the host's, so that the kernel need not doubt it: both cost time.
// The watchdog would take a slow emulation for a hang.
const commandLine = "console=ttyS0 loglevel=5 oops=panic panic=-1 mitigations=off " +
	"tsc=reliable clocksource=tsc no_timer_check nowatchdog rdinit=/init"

// consoleLines is how much of the kernel's console a failure shows.
const consoleLines = 60

// mostBoots is how often a machine is booted whose kernel has a fault before any
// test: as it patches its own code, a second emulated processor may run a change
// that is half done (Oops: int3), once in some dozen boots.
const mostBoots = 3

// errFault is a fault of the kernel in the machine.
var errFault = errors.New("the kernel had a fault")

// boot boots a machine, copies what its tests write to out and waits until it
// has powered off. The result says which tests ended how. It is an error when a test failed, the kernel had a fault or
// time ran out.
func boot(ctx context.Context, m machine, out io.Writer) (result, error) {
	defer func() { _ = os.Remove(m.image) }()
	for boots := 1; ; boots++ {
		tests := &noting{Writer: out}
		ended, err := bootOnce(ctx, m, tests, out)
		if tests.written || boots == mostBoots || !errors.Is(err, errFault) {
			return ended, err
		}
		_, _ = fmt.Fprintln(out, "No test has begun; booting once more after:", err)
	}
}

// noting is a Writer that notes whether it was used.
type noting struct {
	io.Writer
	written bool
}

// Write implements io.Writer.
func (n *noting) Write(b []byte) (int, error) {
	n.written = true
	return n.Writer.Write(b)
}

// bootOnce has a writer of its own for what the tests write.
func bootOnce(ctx context.Context, m machine, testsOut, out io.Writer) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	console := strings.TrimSuffix(m.image, ".cpio") + ".console"
	defer func() { _ = os.Remove(console) }()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", m.memory, "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", m.kernel.image, "-initrd", m.image, "-append", commandLine,
		"-serial", "file:"+console, "-serial", "stdio")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	tests, err := cmd.StdoutPipe()
	if err != nil {
		return result{}, fmt.Errorf("starting a virtual machine: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return result{}, fmt.Errorf("starting a virtual machine: %w", err)
	}
	got, copyErr := followTests(tests, testsOut)
	err = errors.Join(copyErr, cmd.Wait())
	log, readErr := os.ReadFile(console)
	bad, warnings := kernelFaults(string(log))
	for _, w := range warnings {
		_, _ = fmt.Fprintln(out, "the kernel warned:", w)
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		err = fmt.Errorf("the machine was ended before its tests: %w", ctx.Err())
	case ctx.Err() != nil:
		err = fmt.Errorf("the machine was ended after %s: %w", m.limit, ctx.Err())
	case err != nil:
		err = fmt.Errorf("the virtual machine: %w: %s", err, strings.TrimSpace(complaint.String()))
	case len(bad) > 0:
		err = fmt.Errorf("%w: %s", errFault, strings.Join(bad, "; "))
	case !got.ended:
		err = errors.New("the machine ended before its tests did")
	default:
		return got, got.err()
	}
	_, _ = fmt.Fprintf(out, "The end of the kernel's console:\n%s\n", lastLines(string(log), consoleLines))
	return got, errors.Join(err, readErr)
}

// lastLines are the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
