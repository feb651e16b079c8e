package iptables

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
)

// commands are the iptables programs of one variant and family.
type commands struct {
	path        string
	variant     Variant
	family      dataplane.Family
	restorePath string
	savePath    string
	version     string
	randomFully bool          // MASQUERADE knows --random-fully
	lockWait    int           // seconds for each of lockTries
	most        time.Duration // for each command
	lock        *writeLock
	watch       *watch // knows our commands from those of others; nil: nobody asks
}

const (
	// lockTries is how often the xtables lock is waited for.
	lockTries = 3
	// tryPause is between two tries.
	tryPause = 200 * time.Millisecond
	// versionMost and commandMost are how long a command may take: one that says its
	// version, and one that reads or writes rules, which for 50,000 Services on a busy
	// machine takes a minute. One that hangs would keep the xtables lock for ever.
	versionMost = 10 * time.Second
	commandMost = 5 * time.Minute
	// pipeMost is how long a command's own children may hold its output after it.
	pipeMost = 5 * time.Second
)

// command readies a command that ends with ctx.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = pipeMost
	return cmd
}

// findCommands finds the programs of a variant; the error wraps ErrUnsupported
// where they are not installed.
func findCommands(ctx context.Context, v Variant, f dataplane.Family, lockWait int) (*commands, error) {
	base := "iptables"
	if f == dataplane.IPv6 {
		base = "ip6tables"
	}
	var reasons []string
	for _, name := range []string{base + "-" + string(v), base} {
		path, err := exec.LookPath(name)
		if err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		have, version, err := variantOf(ctx, path)
		if err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		if have != v {
			reasons = append(reasons, fmt.Sprintf("%s is %s (%s)", path, have, version))
			continue
		}
		c := &commands{path: path, variant: v, family: f, version: version, randomFully: hasRandomFully(version), lockWait: lockWait, most: commandMost}
		if c.restorePath, err = exec.LookPath(name + "-restore"); err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		if c.savePath, err = exec.LookPath(name + "-save"); err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		return c, nil
	}
	return nil, fmt.Errorf("%w: no %s for %s: %s", dataplane.ErrUnsupported, v, f, strings.Join(reasons, "; "))
}

// hasRandomFully reports whether iptables of a version knows MASQUERADE
// --random-fully: since 1.6.2.
func hasRandomFully(version string) bool {
	var major, minor, patch int
	_, number, _ := strings.Cut(version, " v")
	if n, _ := fmt.Sscanf(number, "%d.%d.%d", &major, &minor, &patch); n < 2 {
		return false
	}
	return slices.Compare([]int{major, minor, patch}, []int{1, 6, 2}) >= 0
}

// variantOf asks an iptables program which variant it is.
func variantOf(ctx context.Context, path string) (Variant, string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionMost)
	defer cancel()
	out, err := command(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return "", "", fmt.Errorf("asking %s for its version: %w: %s", path, err, bytes.TrimSpace(out))
	}
	version := strings.TrimSpace(string(out))
	if strings.Contains(version, "(nf_tables)") {
		return NFT, version, nil
	}
	return Legacy, version, nil // 1.8 says "(legacy)", what is older says nothing
}

// refusal is an error of iptables-restore: it changed nothing in the table at fault.
type refusal struct {
	lines []int  // of the input that it complains about, from 1; may be none
	text  string // what it printed
	err   error
}

func (r *refusal) Error() string { return fmt.Sprintf("iptables-restore: %v: %s", r.err, r.text) }
func (r *refusal) Unwrap() error { return r.err }

// errLocked says that another program holds the xtables lock.
var errLocked = errors.New("another program holds the xtables lock")

// exitResource is iptables' exit status for the lock, and for other shortages
// that may pass.
const exitResource = 4

// restore gives iptables-restore a transaction. Each table in it is changed as
// a whole or not at all.
func (c *commands) restore(ctx context.Context, input []byte) error {
	for try := 1; ; try++ {
		err := c.restoreOnce(ctx, input)
		if err == nil || try == lockTries || ctx.Err() != nil || !mayPass(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(tryPause):
		}
		input = uncommitted(input, err)
	}
}

// uncommitted returns the tables of a transaction that are still to be written
// after a table could not be had. Legacy has committed the ones before it, and to
// write them again would insert their rules twice.
func uncommitted(input []byte, err error) []byte {
	var no *refusal
	if !errors.As(err, &no) {
		return input
	}
	_, rest, _ := strings.Cut(no.text, noTable+" '")
	table, _, ok := strings.Cut(rest, "'")
	if i := bytes.Index(input, []byte("\n*"+table+"\n")); ok && i > 0 {
		return input[i+1:]
	}
	return input
}

const noTable = "unable to initialize table"

// withoutTable reports whether a table could not be had.
func withoutTable(err error) bool {
	var no *refusal
	return errors.As(err, &no) && strings.Contains(no.text, noTable)
}

// mayPass tells that the next try may succeed: when another program has left the
// lock, or when the module of a legacy table has been loaded. While that goes on
// for one program, the kernel tells others that there is no such table
// (xt_find_table_lock, seen on Linux 6.12).
func mayPass(err error) bool {
	return withoutTable(err) || errors.Is(err, errLocked)
}

// test has iptables-restore read a transaction without a commit.
func (c *commands) test(ctx context.Context, input []byte) error {
	return c.restoreOnce(ctx, input, "--test")
}

func (c *commands) restoreOnce(ctx context.Context, input []byte, flags ...string) error {
	if c.variant == Legacy {
		c.lock.xtables.Lock()
		defer c.lock.xtables.Unlock()
	}
	// --noflush leaves alone what the input does not name.
	flags = append([]string{"--noflush", "-w", strconv.Itoa(c.lockWait)}, flags...)
	ctx, cancel := context.WithTimeout(ctx, c.most)
	defer cancel()
	cmd := command(ctx, c.restorePath, flags...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.ExtraFiles = []*os.File{c.lock.file}
	out, err := c.output(cmd)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s stopped: %w", c.restorePath, ctx.Err())
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("running %s: %w", c.restorePath, err)
	}
	if exit.ExitCode() == exitResource && bytes.Contains(out, []byte("xtables lock")) {
		return fmt.Errorf("%w: not free within %d seconds", errLocked, c.lockWait)
	}
	if exit.ExitCode() < 0 { // killed
		return fmt.Errorf("running %s: %w", c.restorePath, err)
	}
	return &refusal{lines: refusedLines(out), text: firstLines(out), err: err}
}

// output runs a command that writes and returns what it prints.
func (c *commands) output(cmd *exec.Cmd) ([]byte, error) {
	if c.watch == nil {
		return cmd.CombinedOutput()
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := c.watch.start(cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	c.watch.ended(cmd)
	return out.Bytes(), err
}

// errorLength is how much of an error text is worth repeating.
const errorLength = 400

// errorLine finds an input line's number in an error text: nft and legacy, the
// program and the kernel, each say it in their own way.
func errorLine() *regexp.Regexp {
	return regexp.MustCompile(`(?m)(?:^line (\d+)|line (\d+) failed|occurred at line: (\d+))`)
}

// refusedLines finds the numbers of the input lines in an error text.
func refusedLines(out []byte) []int {
	var lines []int
	for _, m := range errorLine().FindAllSubmatch(out, -1) {
		for _, digits := range m[1:] {
			if n, err := strconv.Atoi(string(digits)); err == nil && !slices.Contains(lines, n) {
				lines = append(lines, n)
			}
		}
	}
	return lines
}

// firstLines is the start of an error text, on one line.
func firstLines(out []byte) string {
	text := strings.Join(strings.Fields(string(out)), " ")
	if len(text) > errorLength {
		text = text[:errorLength] + "…"
	}
	return text
}

// scan reads all tables back, line by line as iptables-save prints them; a line
// is only valid until the next one. One run for all: iptables-nft-save fetches
// the rules of all tables from the kernel even when asked for one. Tables that
// legacy iptables has not used yet are not made by it.
func (c *commands) scan(ctx context.Context, line func(table string, line []byte)) error {
	var stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(ctx, c.most)
	defer cancel()
	cmd := command(ctx, c.savePath)
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("running %s: %w", c.savePath, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running %s: %w", c.savePath, err)
	}
	defer context.AfterFunc(ctx, func() { _ = out.Close() })() // its own children may hold the other end
	table := ""
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if text := lines.Bytes(); len(text) > 0 && text[0] == '*' {
			table = string(text[1:])
		} else {
			line(table, text)
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	if ctx.Err() != nil {
		return fmt.Errorf("%s stopped: %w", c.savePath, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("reading rules with %s: %w: %s", c.savePath, err, firstLines(stderr.Bytes()))
	}
	return nil
}

// read reads back what is ours, by table.
func (c *commands) read(ctx context.Context) (map[string]*saved, error) {
	out := map[string]*saved{tableFilter: newSaved(), tableNAT: newSaved()}
	err := c.readInto(ctx, out)
	if filter := out[tableFilter]; err == nil && filter.unread != nil && filter.chains[chainInput] != "" {
		// It says who switched route_localnet on.
		filter.chains[chainInput], err = c.list(ctx, tableFilter, chainInput)
	}
	return out, err
}

// readInto reads tables back. What iptables cannot list, the kernel outlines: not
// being able to read never stops writing.
func (c *commands) readInto(ctx context.Context, out map[string]*saved) error {
	err := c.scan(ctx, func(table string, line []byte) {
		if not := incompatible(line); out[not] != nil {
			out[not].unread = errIncompatible
		}
		if s, ok := out[table]; ok {
			s.line(line)
		}
	})
	for _, s := range out {
		s.end()
	}
	if err != nil && (c.variant != NFT || ctx.Err() != nil) {
		return err
	}
	for table, s := range out {
		if err != nil {
			s.unread = err
		}
		if s.unread == nil {
			continue
		}
		if failed := s.outline(c.family, table); failed != nil {
			return errors.Join(err, failed)
		}
	}
	return nil
}

// incompatible returns the table that a remark of iptables-nft-save says it cannot
// list; "": another line. That a table also has base chains of others is no such
// remark: iptables lists and writes its own alongside.
func incompatible(line []byte) string {
	rest, ok := bytes.CutPrefix(line, []byte("# Table `"))
	table, what, _ := bytes.Cut(rest, []byte("' "))
	if !ok || !bytes.HasPrefix(what, []byte("is incompatible")) {
		return ""
	}
	return string(table)
}

// inUse tells whether there can be rules of this variant, without making any.
func (c *commands) inUse(f dataplane.Family) bool {
	return c.variant == NFT || len(xtables.LegacyTables(f)) > 0
}
