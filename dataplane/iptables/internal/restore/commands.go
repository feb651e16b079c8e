package restore

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
	"sync"
	"time"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/internal/nft"
	"github.com/switchyard-io/switchyard/dataplane/internal/xtables"
)

// Commands are the iptables programs of one variant and family.
type Commands struct {
	Variant     Variant
	Family      dataplane.Family
	Version     string
	RandomFully bool    // MASQUERADE knows --random-fully
	Lock        *Lock   // commands that write inherit it
	Watch       Watcher // nil: nobody asks
	// Idle is how long a command may use no processor time before it counts as hanging.
	Idle time.Duration

	path, restorePath, savePath string

	lockWait int           // seconds for each of lockTries
	most     time.Duration // for each command

	mu   sync.Mutex
	hung map[string]bool // programs whose last run hung, by path
}

// Watcher learns of our commands that write, to tell them from those of others.
type Watcher interface {
	// Start starts a command.
	Start(cmd *exec.Cmd) error
	// Ended is called after it has ended.
	Ended(cmd *exec.Cmd)
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

// Find finds the programs of a variant. The error wraps dataplane.ErrUnsupported where
// they are not installed.
func Find(ctx context.Context, v Variant, f dataplane.Family, lockWait int) (*Commands, error) {
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
		c := &Commands{path: path, Variant: v, Family: f, Version: version, RandomFully: hasRandomFully(version), lockWait: lockWait, most: commandMost, Idle: idleMost}
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

// Refusal is an error of iptables-restore: it changed nothing in the table at fault.
type Refusal struct {
	Lines []int  // of the input that it complains about, from 1; may be none
	text  string // what it printed
	err   error
}

func (r *Refusal) Error() string { return fmt.Sprintf("iptables-restore: %v: %s", r.err, r.text) }

// Unwrap gives the command's own error.
func (r *Refusal) Unwrap() error { return r.err }

// ErrLocked says that another program holds the xtables lock.
var ErrLocked = errors.New("another program holds the xtables lock")

// exitResource is iptables' exit status for the lock, and for other shortages
// that may pass.
const exitResource = 4

// Restore gives iptables-restore its input. Each table in it is changed as a whole or
// not at all.
func (c *Commands) Restore(ctx context.Context, input []byte) error {
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

// uncommitted returns the tables of an input that are still to be written
// after a table could not be had. Legacy has committed the ones before it, and to
// write them again would insert their rules twice.
func uncommitted(input []byte, err error) []byte {
	var no *Refusal
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

// WithoutTable reports whether a table could not be had.
func WithoutTable(err error) bool {
	var no *Refusal
	return errors.As(err, &no) && strings.Contains(no.text, noTable)
}

// mayPass reports whether the next try may succeed: when another program has left the
// lock, or when the module of a legacy table has been loaded. While that goes on
// for one program, the kernel tells others that there is no such table
// (xt_find_table_lock, seen on Linux 6.12).
func mayPass(err error) bool {
	return WithoutTable(err) || errors.Is(err, ErrLocked)
}

// Test has iptables-restore read its input without a commit.
func (c *Commands) Test(ctx context.Context, input []byte) error {
	return c.restoreOnce(ctx, input, "--test")
}

func (c *Commands) restoreOnce(ctx context.Context, input []byte, flags ...string) error {
	if c.Variant == Legacy {
		c.Lock.xtables.Lock()
		defer c.Lock.xtables.Unlock()
	}
	// --noflush leaves alone what the input does not name.
	flags = append([]string{"--noflush", "-w", strconv.Itoa(c.lockWait)}, flags...)
	g := c.guard(ctx, c.restorePath)
	defer g.end()
	cmd := command(g.ctx, c.restorePath, flags...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.ExtraFiles = []*os.File{c.Lock.file}
	out, err := c.output(cmd, g)
	if err == nil {
		return nil
	}
	if stopped := g.stopped(); stopped != nil {
		return stopped
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("running %s: %w", c.restorePath, err)
	}
	if exit.ExitCode() == exitResource && bytes.Contains(out, []byte("xtables lock")) {
		return fmt.Errorf("%w: not free within %d seconds", ErrLocked, c.lockWait)
	}
	if exit.ExitCode() < 0 { // killed
		return fmt.Errorf("running %s: %w", c.restorePath, err)
	}
	return &Refusal{Lines: refusedLines(out), text: firstLines(out), err: err}
}

// output runs a command that writes and returns what it prints.
func (c *Commands) output(cmd *exec.Cmd, g *guard) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start, ended := (*exec.Cmd).Start, func(*exec.Cmd) {}
	if c.Watch != nil {
		start, ended = c.Watch.Start, c.Watch.Ended
	}
	if err := start(cmd); err != nil {
		return nil, err
	}
	g.watch(cmd)
	err := cmd.Wait()
	ended(cmd)
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

// firstLines returns the start of an error text, on one line.
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
func (c *Commands) scan(ctx context.Context, line func(table string, line []byte)) error {
	var stderr bytes.Buffer
	g := c.guard(ctx, c.savePath)
	defer g.end()
	cmd := command(g.ctx, c.savePath)
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("running %s: %w", c.savePath, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running %s: %w", c.savePath, err)
	}
	g.watch(cmd)
	defer context.AfterFunc(g.ctx, func() { _ = out.Close() })() // its own children may hold the other end
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
	if stopped := g.stopped(); stopped != nil {
		return stopped
	}
	if err != nil {
		return fmt.Errorf("reading rules with %s: %w: %s", c.savePath, err, firstLines(stderr.Bytes()))
	}
	return nil
}

// Read reads tables back, as far as they are of chains that owns reports. What iptables
// cannot list, the kernel outlines: not being able to read never stops writing.
func (c *Commands) Read(ctx context.Context, owns func(chain string) bool, tables ...string) (map[string]*Table, error) {
	out := map[string]*Table{}
	for _, table := range tables {
		out[table] = newTable(owns)
	}
	err := c.scan(ctx, func(table string, line []byte) {
		if not := incompatible(line); out[not] != nil {
			out[not].Unread = errIncompatible
		}
		if s, ok := out[table]; ok {
			s.line(line)
		}
	})
	for _, s := range out {
		s.end()
	}
	if err != nil && (c.Variant != NFT || ctx.Err() != nil) {
		return out, err
	}
	for table, s := range out {
		if err != nil {
			s.Unread = err
		}
		if s.Unread == nil {
			continue
		}
		if failed := s.outline(c.Family, table); failed != nil {
			return out, errors.Join(err, failed)
		}
	}
	return out, nil
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

// InUse reports whether there can be rules of this variant, without making any.
func (c *Commands) InUse() bool {
	return c.Variant == NFT || len(xtables.LegacyTables(c.Family)) > 0
}

// List returns the rules of one chain. iptables lists it even where it does not list the table.
func (c *Commands) List(ctx context.Context, table, chain string) (string, error) {
	g := c.guard(ctx, c.path)
	defer g.end()
	var out, stderr bytes.Buffer
	cmd := command(g.ctx, c.path, "-w", "1", "-t", table, "-S", chain)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Start()
	if err == nil {
		g.watch(cmd)
		err = cmd.Wait()
	}
	if stopped := g.stopped(); err != nil && stopped != nil {
		err = stopped
	}
	if err != nil {
		return "", fmt.Errorf("listing the chain %s with %s: %w: %s", chain, c.path, err, firstLines(stderr.Bytes()))
	}
	var body bytes.Buffer
	for line := range strings.Lines(out.String()) {
		if rule, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			body.WriteString(rule)
		}
	}
	return body.String(), nil
}

// Write carries out writes, with nft in stages if it is large. Legacy
// iptables replaces the whole table each time, so that one step is best there.
func (c *Commands) Write(ctx context.Context, w *Writes) error {
	if c.Variant == Legacy {
		return c.writeStage(ctx, w)
	}
	for _, stage := range w.stages() {
		if err := c.writeStage(ctx, stage); err != nil {
			return err
		}
	}
	return nil
}

// writeStage removes the rules whose text is not known, by the kernel's own numbers
// for them, and then has iptables-restore do all else.
func (c *Commands) writeStage(ctx context.Context, w *Writes) error {
	for table, t := range w.Tables {
		var rules []nft.OutlineRule
		for _, d := range t.Delete {
			if d.Handle != 0 {
				rules = append(rules, nft.OutlineRule{Chain: d.Chain, Handle: d.Handle})
			}
		}
		if len(rules) == 0 {
			continue
		}
		if err := nft.DeleteRules(c.Family, table, rules); err != nil {
			return err
		}
		t.Delete = slices.DeleteFunc(t.Delete, func(d ForeignRule) bool { return d.Handle != 0 })
	}
	return c.Restore(ctx, w.Text())
}
