// Command vm runs the tests of packages on other kernels, each in a virtual machine that QEMU emulates.
//
// It takes Debian's kernels by package name, builds an initramfs of the test
// binaries, the modules and the tools that they need, boots it and hands back
// what the tests write and how they end. Nothing is installed on this machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	kernel  string
	series  []series // that it stands for
	run     string
	backend string
	verbose bool
	args    string
	command string
	with    []string
	memory  string
	slow    int
	limit   time.Duration
	cache   string
	tests   []string // packages
}

func main() {
	o, err := parse(os.Args[1:], os.Stderr)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		err = o.do(ctx)
		stop()
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// parse reads the command line.
func parse(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		_, _ = fmt.Fprintln(out, "usage: vm [flags] [PACKAGE ...]; without packages: those of the kernel matrix")
		f.PrintDefaults()
	}
	f.StringVar(&o.kernel, "kernel", "all", "the kernel: "+strings.Join(seriesNames(), ", ")+", or a number that the newest has; "+
		"all: those that each change is tested on, side by side")
	f.StringVar(&o.run, "run", "", "just the tests that match, as go test -run has it")
	f.StringVar(&o.backend, "backend", "", "of the conformance table, just this backend or column")
	f.BoolVar(&o.verbose, "v", false, "say each test, as go test -v does")
	f.StringVar(&o.args, "args", "", "what else the test binaries are told, words between spaces")
	f.StringVar(&o.command, "exec", "", "run this shell command instead of tests")
	f.Func("with", "a program of this machine, by path, that the command needs; may be repeated", func(path string) error {
		o.with = append(o.with, path)
		return nil
	})
	f.StringVar(&o.memory, "memory", "3G", "of the machine, as QEMU's -m has it")
	f.IntVar(&o.slow, "slow", 5, "how many times more patient than on a real machine tests are")
	f.DurationVar(&o.limit, "limit", 20*time.Minute, "a machine that takes longer hangs, and fails")
	f.StringVar(&o.cache, "cache", ".cache/vm", "where kernels and images are kept")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.series, err = choose(o.kernel); err != nil {
		return o, fmt.Errorf("--kernel: %w", err)
	}
	if o.slow < 1 {
		return o, fmt.Errorf("--slow: %d is not 1 or more", o.slow)
	}
	o.tests = f.Args()
	return o, nil
}

// do runs the jobs on the kernels.
func (o options) do(ctx context.Context) error {
	var every []job
	for _, s := range o.series {
		every = append(every, o.jobs(s)...)
	}
	binaries, err := buildTests(ctx, o.cache, every)
	if err != nil {
		return err
	}
	kernels := make([]kernel, len(o.series))
	for i, s := range o.series { // one after the other, as apt wants it
		if kernels[i], err = fetchKernel(ctx, s, o.cache); err != nil {
			return err
		}
		if !kernels[i].is(o.kernel) {
			return fmt.Errorf("--kernel: Debian's newest kernel is %s, not %s", kernels[i].version, o.kernel)
		}
	}
	errs := make([]error, len(kernels))
	var all sync.WaitGroup
	out := &sharedWriter{to: os.Stdout}
	for i, k := range kernels {
		mine := io.Writer(out)
		if len(kernels) > 1 {
			mine = &prefixWriter{prefix: k.version + " | ", to: out}
		}
		all.Go(func() {
			if err := o.doOn(ctx, k, o.jobs(o.series[i]), binaries, mine); err != nil {
				errs[i] = fmt.Errorf("on Linux %s: %w", k.version, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// doOn runs the jobs on one kernel.
func (o options) doOn(ctx context.Context, k kernel, jobs []job, binaries string, out io.Writer) error {
	image, err := buildImage(ctx, imageConfig{kernel: k, cache: o.cache, binaries: binaries, jobs: jobs, with: o.with, slow: o.slow})
	if err != nil {
		return err
	}
	start := time.Now()
	_, _ = fmt.Fprintf(out, "Linux %s\n", k.version)
	ended, err := boot(ctx, machine{kernel: k, image: image, memory: o.memory, limit: o.limit}, out)
	_, _ = fmt.Fprintf(out, "Linux %s: %s after %s\n", k.version, ended, time.Since(start).Round(time.Second))
	return err
}
