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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	kernel  string
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
	jobs    []job
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
	f.StringVar(&o.kernel, "kernel", "all", "the kernel: "+strings.Join(seriesNames(), ", ")+" or all, side by side")
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
	if o.kernel != "all" && !slices.Contains(seriesNames(), o.kernel) {
		return o, fmt.Errorf("--kernel: %q is not one of %s, all", o.kernel, strings.Join(seriesNames(), ", "))
	}
	if o.slow < 1 {
		return o, fmt.Errorf("--slow: %d is not 1 or more", o.slow)
	}
	o.jobs = jobs(f.Args(), o)
	return o, nil
}

// do runs the jobs on the kernels.
func (o options) do(ctx context.Context) error {
	binaries, err := buildTests(ctx, o.cache, o.jobs)
	if err != nil {
		return err
	}
	chosen := slices.DeleteFunc(allSeries(), func(s series) bool { return o.kernel != "all" && s.name != o.kernel })
	kernels := make([]kernel, len(chosen))
	for i, s := range chosen { // one after the other, as apt wants it
		if kernels[i], err = fetchKernel(ctx, s, o.cache); err != nil {
			return err
		}
	}
	errs := make([]error, len(chosen))
	var all sync.WaitGroup
	out := &sharedWriter{to: os.Stdout}
	for i, s := range chosen {
		mine := io.Writer(out)
		if len(chosen) > 1 {
			mine = &prefixWriter{prefix: s.name + " | ", to: out}
		}
		all.Go(func() {
			if err := o.doOn(ctx, kernels[i], binaries, mine); err != nil {
				errs[i] = fmt.Errorf("kernel %s: %w", s.name, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// doOn runs the jobs on one kernel.
func (o options) doOn(ctx context.Context, k kernel, binaries string, out io.Writer) error {
	image, err := buildImage(ctx, imageConfig{kernel: k, cache: o.cache, binaries: binaries, jobs: o.jobs, with: o.with, slow: o.slow})
	if err != nil {
		return err
	}
	start := time.Now()
	_, _ = fmt.Fprintf(out, "Linux %s\n", k.version)
	err = boot(ctx, machine{kernel: k, image: image, memory: o.memory, limit: o.limit}, out)
	_, _ = fmt.Fprintf(out, "Linux %s: %s\n", k.version, time.Since(start).Round(time.Second))
	return err
}
