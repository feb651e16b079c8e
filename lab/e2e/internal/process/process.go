// Package process starts the lab's long-running programs and remembers them.
//
// Each one leaves a small record in a folder, so that a later run of the lab
// stops exactly what an earlier one started: a record holds the time at which
// the process began, and a pid that the kernel has given to something else
// since then does not match it.
package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Record identifies one process for as long as the machine runs.
type Record struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
	// Began is the process's start in clock ticks since boot, Boot the kernel's
	// id of this boot: together with PID they never mean another process.
	Began uint64 `json:"began"`
	Boot  string `json:"boot"`
}

// Spec is a program to start.
type Spec struct {
	Name string   // of the record and the log, for instance "node1-kubelet"
	Args []string // Args[0] is looked up in PATH
	Env  []string // added to this process's environment
	// Cgroup is the cgroup v2 folder in which the program starts.
	Cgroup string
}

// Set is the processes whose records and logs are in one folder each.
type Set struct {
	Records string // folder of NAME.json
	Logs    string // folder of NAME.log, appended to
}

// Start runs spec in a session of its own, away from the terminal's Ctrl-C,
// and records it.
func (s Set) Start(spec Spec) error {
	if s.Alive(spec.Name) {
		return fmt.Errorf("starting %s: it is already running", spec.Name)
	}
	log, err := os.OpenFile(filepath.Join(s.Logs, spec.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	defer func() { _ = log.Close() }()
	group, err := os.Open(spec.Cgroup)
	if err != nil {
		return fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	defer func() { _ = group.Close() }()

	cmd := exec.Command(spec.Args[0], spec.Args[1:]...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	// The process outlives this program, but while this program lives it has to
	// collect its exit status.
	go func() { _ = cmd.Wait() }()
	if err := s.record(spec.Name, cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	return nil
}

func (s Set) record(name string, pid int) error {
	stat, err := readStat(pid)
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	data, err := json.Marshal(Record{Name: name, PID: pid, Began: stat.began, Boot: boot})
	if err != nil {
		return err
	}
	return os.WriteFile(s.file(name), append(data, '\n'), 0o644)
}

func (s Set) file(name string) string { return filepath.Join(s.Records, name+".json") }

// Find gives the record of name, and whether that process is still running.
func (s Set) Find(name string) (Record, bool) {
	data, err := os.ReadFile(s.file(name))
	if err != nil {
		return Record{}, false
	}
	var r Record
	if json.Unmarshal(data, &r) != nil {
		return Record{}, false
	}
	return r, r.alive()
}

// Alive tells whether the process recorded under name is running.
func (s Set) Alive(name string) bool {
	_, alive := s.Find(name)
	return alive
}

// List gives all records, sorted by name.
func (s Set) List() ([]Record, error) {
	files, err := filepath.Glob(filepath.Join(s.Records, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	sort.Strings(files)
	var all []Record
	for _, f := range files {
		if r, _ := s.Find(strings.TrimSuffix(filepath.Base(f), ".json")); r.PID != 0 {
			all = append(all, r)
		}
	}
	return all, nil
}

// Stop sends SIGTERM to name, then SIGKILL to what still runs after grace, and
// forgets it. It is no error when it has ended before.
func (s Set) Stop(name string, grace time.Duration) error {
	if err := s.end(name, syscall.SIGTERM, grace); err == nil {
		return nil
	}
	return s.Kill(name)
}

// Kill sends SIGKILL to name and forgets it once it has ended.
func (s Set) Kill(name string) error {
	const killed = 10 * time.Second // a process in an uninterruptible wait may take a while
	return s.end(name, syscall.SIGKILL, killed)
}

func (s Set) end(name string, sig syscall.Signal, within time.Duration) error {
	r, alive := s.Find(name)
	if alive {
		if err := syscall.Kill(r.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
		for deadline := time.Now().Add(within); r.alive(); {
			if time.Now().After(deadline) {
				return fmt.Errorf("stopping %s: process %d still runs %v after %v", name, r.PID, within, sig)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := os.Remove(s.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stopping %s: %w", name, err)
	}
	return nil
}

func (r Record) alive() bool {
	boot, err := bootID()
	if err != nil || boot != r.Boot {
		return false
	}
	stat, err := readStat(r.PID)
	return err == nil && stat.began == r.Began && stat.state != 'Z' && stat.state != 'X'
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

type stat struct {
	state byte
	began uint64
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(data))
}

// parseStat reads /proc/PID/stat. The program's name is in parentheses and may
// itself hold spaces and parentheses, so the fields are counted after the last one.
func parseStat(line string) (stat, error) {
	const ( // proc(5) counts from 1, and its first two are cut off here
		stateField = 0
		beganField = 19
	)
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return stat{}, fmt.Errorf("process status %q: no program name", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) <= beganField {
		return stat{}, fmt.Errorf("process status %q: too few fields", line)
	}
	began, err := strconv.ParseUint(fields[beganField], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("process status %q: %w", line, err)
	}
	return stat{state: fields[stateField][0], began: began}, nil
}
