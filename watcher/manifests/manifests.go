// Package manifests is a directory of Services, EndpointSlices and Nodes as a source of objects.
//
// It reads the files *.yaml, *.yml and *.json right in the directory, each with
// one or more objects, and follows their changes. Hidden files are passed over.
//
// A change is taken as a whole or not at all: while any file has a fault, all of
// the last good directory stays in force. A file that is rewritten in place may
// be read half-written, so put it in place with a rename.
package manifests

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/switchyard-io/switchyard/watcher/facts"
)

const (
	// settle is how long the directory must be quiet before it is read, and
	// maxSettle how long that may put off the reading.
	settle    = 100 * time.Millisecond
	maxSettle = time.Second
	// poll is how often the directory is looked at anyway: notifications do not
	// tell of a change behind a symbolic link, nor survive the directory itself.
	poll = 5 * time.Second
	// rereads is how often a directory that changes under the reader is read again at once.
	rereads = 5
	// maxFile is the largest file that is read, in bytes.
	maxFile = 256 << 20
)

// Source is a directory. It implements watcher.Source.
type Source struct {
	dir, node string
	log       *slog.Logger
	files     map[string]file      // as last read, by path; used by Run alone, like the next two
	now       int64                // Unix seconds of the last reading without faults, later than the one before
	since     map[facts.Name]int64 // the load that brought a Service

	mu  sync.Mutex
	err error
}

// file is what a file held when it looked like stamp.
type file struct {
	stamp   stamp
	objects []object
	err     error
}

// stamp tells versions of a file apart.
type stamp struct {
	size     int64
	modified time.Time
	info     string // where a symbolic link leads
}

// New makes the source; nodeName is this node's.
func New(dir, nodeName string, log *slog.Logger) *Source {
	return &Source{dir: dir, node: strings.ToLower(strings.TrimSpace(nodeName)), log: log, files: map[string]file{}}
}

// Err is why the directory as it is now is not in force; nil: it is. It joins
// one *Fault for each bad object.
func (s *Source) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Run follows the directory until the context ends.
func (s *Source) Run(ctx context.Context, apply func(facts.Change)) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("no notice of changes to manifests; looking now and then", "every", poll, "error", err)
		notify = &fsnotify.Watcher{}
	} else {
		defer func() { _ = notify.Close() }()
	}
	var last map[string]stamp // as last told, well or ill
	for {
		if err == nil {
			_ = notify.Add(s.dir) // again, should it have been replaced; a missing one shows below
		}
		if now, readErr := s.stamps(); readErr != nil || last == nil || !equalStamps(now, last) {
			last = s.tell(apply)
		}
		if err := s.wait(ctx, notify); err != nil {
			return err
		}
	}
}

// wait returns after a change has settled, or when it is time to look anyway.
func (s *Source) wait(ctx context.Context, notify *fsnotify.Watcher) error {
	look := time.NewTimer(poll)
	defer look.Stop()
	var deadline time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			return nil
		case err := <-notify.Errors: // an overflow, say: look
			s.log.Debug("notices of changes to manifests were lost; looking", "error", err)
			return nil
		case _, ok := <-notify.Events:
			if !ok {
				return nil
			}
			if deadline.IsZero() {
				deadline = time.Now().Add(maxSettle)
			}
			look.Reset(min(settle, max(0, time.Until(deadline))))
		}
	}
}

// tell reads the directory and applies it, or notes what is wrong with it.
func (s *Source) tell(apply func(facts.Change)) map[string]stamp {
	change, stamps, err := s.load()
	if err == nil {
		s.age(change.Services.Put)
		apply(change)
	}
	s.mu.Lock()
	before := s.err
	s.err = err
	s.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		s.log.Error("manifests have faults; the last good state stays in force", "directory", s.dir, "error", err)
	case err == nil:
		s.log.Info("manifests read", "directory", s.dir, "files", len(stamps),
			"services", len(change.Services.Put), "endpointSlices", len(change.Slices.Put))
	}
	return stamps
}

// age gives Services that do not say when they were created the order in which
// they came, so that a new file takes no address from a Service that has it,
// whatever their names.
func (s *Source) age(services []*facts.Service) {
	s.now = max(s.now+1, time.Now().Unix())
	since := make(map[facts.Name]int64, len(services))
	for i, f := range services {
		if f.Created != 0 {
			continue
		}
		at, known := s.since[f.Name]
		if !known {
			at = s.now
		}
		since[f.Name] = at
		aged := *f
		aged.Created = at
		services[i] = &aged
	}
	s.since = since
}

// load reads what changed and puts all files together.
func (s *Source) load() (facts.Change, map[string]stamp, error) {
	for range rereads {
		before, err := s.stamps()
		if err != nil {
			return facts.Change{}, nil, err
		}
		s.read(before)
		after, err := s.stamps()
		if err != nil {
			return facts.Change{}, nil, err
		}
		if equalStamps(before, after) {
			change, err := s.assemble()
			return change, before, err
		}
	}
	return facts.Change{}, nil, fmt.Errorf("%s: changes while it is read", s.dir)
}

// read brings s.files up to date with the directory.
func (s *Source) read(now map[string]stamp) {
	for path := range s.files {
		if _, ok := now[path]; !ok {
			delete(s.files, path)
		}
	}
	for path, st := range now {
		if old, ok := s.files[path]; ok && old.stamp == st {
			continue
		}
		f := file{stamp: st}
		if st.size > maxFile {
			f.err = &Fault{File: path, Object: "file", Err: fmt.Errorf("%d bytes, allowed are %d", st.size, maxFile)}
		} else if data, err := os.ReadFile(path); err != nil {
			f.err = &Fault{File: path, Object: "file", Err: err}
		} else {
			f.objects, f.err = decode(path, data, s.node)
		}
		s.files[path] = f
	}
}

// stamps is the files of the directory as they look now.
func (s *Source) stamps() (map[string]stamp, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("reading the directory of manifests: %w", err)
	}
	out := map[string]stamp{}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		path := filepath.Join(s.dir, name)
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			out[path] = stamp{size: -1} // a dangling link: reading it says so
			continue
		}
		info, err := os.Stat(real)
		if err != nil {
			out[path] = stamp{size: -1}
			continue
		}
		if info.Mode().IsRegular() {
			out[path] = stamp{size: info.Size(), modified: info.ModTime(), info: real}
		}
	}
	return out, nil
}

func equalStamps(a, b map[string]stamp) bool {
	if len(a) != len(b) || a == nil {
		return false
	}
	for path, st := range a {
		if other, ok := b[path]; !ok || other != st {
			return false
		}
	}
	return true
}

// assemble puts the files together, in the order of their names.
func (s *Source) assemble() (facts.Change, error) {
	change := facts.Change{
		Services:     facts.Delta[facts.Service]{All: true},
		Slices:       facts.Delta[facts.Slice]{All: true},
		Nodes:        facts.Delta[facts.Node]{All: true},
		ServiceCIDRs: facts.Delta[facts.ServiceCIDR]{All: true},
	}
	// A host needs no manifest of itself.
	node := &facts.Node{Name: facts.Name{Name: s.node}, Eligible: true}
	type key struct {
		kind string
		name facts.Name
	}
	where := map[key]string{}
	var faults []error
	paths := make([]string, 0, len(s.files))
	for path := range s.files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		if err := s.files[path].err; err != nil {
			faults = append(faults, err)
		}
		for _, o := range s.files[path].objects {
			k := key{o.kind, o.name}
			if first, twice := where[k]; twice {
				faults = append(faults, &Fault{File: path, Object: o.String(), Err: fmt.Errorf("is in %s already", first)})
				continue
			}
			where[k] = path
			switch {
			case o.service != nil:
				change.Services.Put = append(change.Services.Put, o.service)
			case o.slice != nil:
				change.Slices.Put = append(change.Slices.Put, o.slice)
			case o.cidr != nil:
				change.ServiceCIDRs.Put = append(change.ServiceCIDRs.Put, o.cidr)
			case o.node != nil:
				node = o.node
			}
		}
	}
	final := *node
	final.Final = true
	change.Nodes.Put = []*facts.Node{&final}
	return change, errors.Join(faults...)
}
