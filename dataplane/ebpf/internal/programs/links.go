package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Hook is a socket program and where it belongs.
type Hook struct {
	Name string // of the program and of its pinned link
	At   ebpf.AttachType
}

// Hooks returns the hooks in the order in which programs are attached.
func Hooks() []Hook {
	return []Hook{
		// What translates back comes first: no answer shows the endpoint's address.
		{"sock_getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"sock_getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"sock_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
		{"sock_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
		// What notes that a program chose its port comes before what asks.
		{"sock_bind4", ebpf.AttachCGroupInet4Bind},
		{"sock_bind6", ebpf.AttachCGroupInet6Bind},
		{"sock_connect4", ebpf.AttachCGroupInet4Connect},
		{"sock_connect6", ebpf.AttachCGroupInet6Connect},
		{"sock_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sock_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
	}
}

// attachHooks makes every hook run its program: by a new link, or by a
// pinned one, whose program is replaced in one step.
func (p *Programs) attachHooks() error {
	for _, h := range Hooks() {
		if err := p.attachHook(h); err != nil {
			return fmt.Errorf("attaching %s to cgroup %s: %w", h.Name, p.CgroupRoot, err)
		}
	}
	return nil
}

func (p *Programs) attachHook(h Hook) error {
	path := filepath.Join(p.Dirs.Links, h.Name)
	prog := p.Collection.Programs[h.Name]
	attached := false
	var olds []link.Link // of no use; they go after the new one is there
	defer func() {
		for _, l := range olds {
			_ = l.Close()
		}
	}()
	elsewhere := p.older.links(h.Name)
	for _, pin := range append([]string{path}, elsewhere...) {
		if attached {
			break
		}
		old, err := link.LoadPinnedLink(pin, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("opening its link: %w", err)
		}
		olds = append(olds, old)
		if attached, err = p.reuse(old, prog); err != nil {
			return err
		}
		if attached && pin != path {
			if err := replacePin(old, path); err != nil { // this moves the pin
				return err
			}
		}
	}
	if !attached {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: p.CgroupRoot, Attach: h.At, Program: prog})
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }() // the pin holds it
		if err := replacePin(l, path); err != nil {
			return err
		}
	}
	var errs []error
	for _, pin := range elsewhere { // two programs of ours would translate twice
		errs = append(errs, detach(pin))
	}
	return errors.Join(errs...)
}

// replacePin pins a link in place of another.
func replacePin(l link.Link, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpinning its old link: %w", err)
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pinning its link: %w", err)
	}
	return nil
}

// reuse makes an old link run the program. false: it is of no use.
func (p *Programs) reuse(l link.Link, prog *ebpf.Program) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("asking for its link: %w", err)
	}
	cgroup := info.Cgroup()
	if cgroup == nil || cgroup.CgroupId != p.cgroupID {
		return false, nil
	}
	if id, ok := ProgramID(prog); ok && info.Program == id {
		return true, nil
	}
	if err := l.Update(prog); err != nil {
		return false, fmt.Errorf("replacing its program: %w", err)
	}
	return true, nil
}

// ProgramID returns the number by which the kernel knows a program, if it does.
func ProgramID(p *ebpf.Program) (ebpf.ProgramID, bool) {
	info, err := p.Info()
	if err != nil {
		return 0, false
	}
	return info.ID()
}

// detach ends a pinned link and removes the pin; it need not be there.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening link %s: %w", path, err)
	}
	defer func() { _ = l.Close() }()
	// A running agent may hold the link: it ends now all the same.
	if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detaching link %s: %w", path, err)
	}
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpinning link %s: %w", path, err)
	}
	return nil
}

// Check returns an error if a hook does not run our program, or a map is not
// pinned, by which the next agent finds it.
func (p *Programs) Check() error {
	if !p.Attached {
		return nil
	}
	var errs []error
	for _, h := range Hooks() {
		errs = append(errs, p.checkHook(h))
	}
	for name := range p.Maps {
		if p.toAdopt[name] == nil {
			errs = append(errs, p.checkPin(name))
		}
	}
	return errors.Join(errs...)
}

func (p *Programs) checkHook(h Hook) error {
	l, err := link.LoadPinnedLink(filepath.Join(p.Dirs.Links, h.Name), nil)
	if err != nil {
		return fmt.Errorf("%s is not attached: %w", h.Name, err)
	}
	info, err := l.Info()
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("asking for the link of %s: %w", h.Name, err)
	}
	cgroup := info.Cgroup()
	id := p.ids[h.Name]
	if cgroup == nil || cgroup.CgroupId != p.cgroupID || id != 0 && info.Program != id {
		return fmt.Errorf("%s is not attached to cgroup %s any more", h.Name, p.CgroupRoot)
	}
	return nil
}

// Expectation is what an Attach left at the hooks.
type Expectation struct {
	links    string // directory of their pins
	cgroupID uint64
	programs map[string]ebpf.ProgramID // by hook; 0: the kernel does not tell
}

// Expect returns what the hooks must run from now on. Nil means nothing yet.
func (p *Programs) Expect() *Expectation {
	if !p.Attached {
		return nil
	}
	return &Expectation{links: p.Dirs.Links, cgroupID: p.cgroupID, programs: p.ids}
}

// errDetached says that a hook does not run our program.
var errDetached = errors.New("a hook does not run our program")

// Check opens each pinned link and asks what it runs.
func (e *Expectation) Check() error {
	for name, program := range e.programs {
		l, err := link.LoadPinnedLink(filepath.Join(e.links, name), nil)
		if err != nil {
			return err
		}
		info, err := l.Info()
		if err = errors.Join(err, l.Close()); err != nil {
			return err
		}
		cgroup := info.Cgroup()
		if cgroup == nil || cgroup.CgroupId != e.cgroupID || program != 0 && info.Program != program {
			return errDetached
		}
	}
	return nil
}
