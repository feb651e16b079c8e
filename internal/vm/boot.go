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
const commandLine = "console=ttyS0 loglevel=5 oops=panic panic=-1 mitigations=off tsc=reliable clocksource=tsc no_timer_check nowatchdog rdinit=/init"

// consoleLines is how much of the kernel's console a failure shows.
const consoleLines = 60

// boot boots a machine, copies what its tests write to out and waits until it
// has powered off. It is an error when a test failed, the kernel had a fault or
// time ran out.
func boot(ctx context.Context, m machine, out io.Writer) error {
	defer func() { _ = os.Remove(m.image) }()
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
		return fmt.Errorf("starting a virtual machine: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a virtual machine: %w", err)
	}
	result, copyErr := followTests(tests, out)
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
		err = fmt.Errorf("the kernel had a fault: %s", strings.Join(bad, "; "))
	case !result.ended:
		err = errors.New("the machine ended before its tests did")
	default:
		return result.err()
	}
	_, _ = fmt.Fprintf(out, "The end of the kernel's console:\n%s\n", lastLines(string(log), consoleLines))
	return errors.Join(err, readErr)
}

// lastLines are the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
