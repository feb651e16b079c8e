package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// faults strikes a backend in the middle of what it does. Its steps are what
// changes the kernel's state: commands, or system calls (traps_test.go).
type faults interface {
	// restart starts an agent that is struck.
	restart(r *run, node string) *agent
	// plan says what the next steps do, and forgets those so far.
	plan(r *run, what string, args ...string)
	// steps are those since the plan was made.
	steps(r *run) []string
	// writes are those of the steps that may change the kernel's state.
	writes(r *run) []string
}

// commandFaults is an agent whose PATH begins with a folder where each command
// that a backend may run is this test binary. It writes down how it was called
// and then runs the real command, or fails, or kills the agent, as planned.
type commandFaults struct{ dir string }

// faultsVariable names that folder to the commands in it.
const faultsVariable = "SWITCHYARD_FAULTS"

// pathVariable is the PATH without it.
const pathVariable = "SWITCHYARD_FAULTS_PATH"

// wrapped are the commands, as patterns.
var wrapped = []string{"iptables*", "ip6tables*", "xtables*", "nft", "ipset", "ipvsadm", "conntrack", "modprobe", "tc", "bpftool"}

// newCommandFaults makes such a folder; its plan is to run every command as it is.
func newCommandFaults(r *run) faults {
	r.Helper()
	f := &commandFaults{dir: r.TempDir()}
	self, err := os.Executable()
	r.must(err)
	for dir := range strings.SplitSeq(os.Getenv("PATH"), ":") {
		for _, pattern := range wrapped {
			commands, err := filepath.Glob(filepath.Join(dir, pattern))
			r.must(err)
			for _, c := range commands {
				if err := os.Symlink(self, filepath.Join(f.dir, filepath.Base(c))); err != nil && !errors.Is(err, os.ErrExist) {
					r.Fatal(err)
				}
			}
		}
	}
	f.plan(r, "")
	return f
}

func (f *commandFaults) restart(r *run, node string) *agent {
	return r.restart(node, "PATH="+f.dir+":"+os.Getenv("PATH"), pathVariable+"="+os.Getenv("PATH"), faultsVariable+"="+f.dir)
}

// The plans, told for commands. N counts the steps since the plan was made, from 1.
const (
	failAt    = "fail"       // the N-th command fails before it does anything
	failAfter = "fail-after" // the N-th command does its work, then fails
	killAt    = "kill"       // the agent is killed before the N-th command does anything
	killAfter = "kill-after" // the agent is killed when the N-th command has done its work
	refuse    = "refuse"     // commands refuse input with the given text in a line, as a kernel would
)

func (f *commandFaults) plan(r *run, what string, args ...string) {
	r.Helper()
	r.must(os.WriteFile(filepath.Join(f.dir, "log"), nil, 0o600))
	r.must(os.WriteFile(filepath.Join(f.dir, "plan"), []byte(strings.Join(append([]string{what}, args...), "\n")), 0o600))
}

func (f *commandFaults) steps(r *run) []string {
	r.Helper()
	log, err := os.ReadFile(filepath.Join(f.dir, "log"))
	r.must(err)
	return strings.Split(strings.TrimSuffix(string(log), "\n"), "\n")[:bytes.Count(log, []byte("\n"))]
}

func (f *commandFaults) writes(r *run) []string {
	r.Helper()
	return slices.DeleteFunc(f.steps(r), readsOnly)
}

// readsOnly tells whether a command line only reads.
func readsOnly(line string) bool {
	words := strings.Fields(line)
	if strings.HasSuffix(words[0], "-save") {
		return true
	}
	for _, w := range words[1:] {
		switch w {
		case "-S", "-L", "-C", "-V", "--version", "--list", "--list-rules", "--check", "--test", "list", "show":
			return true
		}
	}
	return false
}

// runAsFaultyCommand plays a command's role where this process was started as
// one, and then does not return.
func runAsFaultyCommand() {
	dir := os.Getenv(faultsVariable)
	name := filepath.Base(os.Args[0])
	if dir == "" || !slices.ContainsFunc(wrapped, func(p string) bool { ok, _ := filepath.Match(p, name); return ok }) {
		return
	}
	status, err := faultyCommand(dir, name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(status)
}

func faultyCommand(dir, name string) (int, error) {
	plan, n, err := noteCommand(dir, strings.Join(append([]string{name}, os.Args[1:]...), " "))
	if err != nil {
		return 0, err
	}
	if err := os.Setenv("PATH", os.Getenv(pathVariable)); err != nil {
		return 0, err
	}
	if plan[0] == refuse {
		return refusing(plan, name)
	}
	if plan[0] == "" || plan[1] != strconv.Itoa(n) {
		return realCommand(name, os.Stdin)
	}
	switch plan[0] {
	case killAt:
		return 0, unix.Kill(os.Getppid(), unix.SIGKILL)
	case killAfter, failAfter:
		status, err := realCommand(name, os.Stdin)
		if err != nil || status != 0 {
			return status, err
		}
		if plan[0] == killAfter {
			return 0, unix.Kill(os.Getppid(), unix.SIGKILL)
		}
	}
	return 0, fmt.Errorf("%s: failed as planned", name)
}

// noteCommand writes a command line down and gives the plan and the line's number.
func noteCommand(dir, line string) (plan []string, n int, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }() // this also unlocks it
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, 0, err
	}
	log, err := io.ReadAll(f)
	if err != nil {
		return nil, 0, err
	}
	if _, err := fmt.Fprintln(f, line); err != nil {
		return nil, 0, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "plan"))
	if err != nil {
		return nil, 0, err
	}
	return strings.Split(string(text), "\n"), bytes.Count(log, []byte("\n")) + 1, nil
}

// realCommand runs the command that this process stands for.
func realCommand(name string, stdin io.Reader) (int, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(path, os.Args[1:]...)
	cmd.Args[0] = name // several names are one program, which looks at how it was called
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return 128 + int(s.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// refusing fails where a line of the input holds the plan's text, with what
// the plan says that such a command prints.
func refusing(plan []string, name string) (int, error) {
	if !strings.Contains(name, "restore") {
		for _, arg := range os.Args[1:] {
			if strings.Contains(arg, plan[2]) {
				return 0, fmt.Errorf("%s: refused as planned", name)
			}
		}
		return realCommand(name, os.Stdin)
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(input), "\n")
	for i, line := range lines {
		if !strings.Contains(line, plan[2]) {
			continue
		}
		commit := i + slices.Index(lines[i:], "COMMIT")
		col, err := columnNamed(plan[1])
		if err != nil {
			return 0, err
		}
		fmt.Fprintln(os.Stderr, col.refusal(i+1, commit+1))
		return 1, nil
	}
	return realCommand(name, bytes.NewReader(input))
}
