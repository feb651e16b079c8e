package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/pods"
)

// hook is a socket program and where it belongs.
type hook struct {
	name string // of the program and of its pinned link
	at   ebpf.AttachType
}

func hooks() []hook {
	return []hook{
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

// attachSockets makes every hook run its program: by a new link, or by a
// pinned one, whose program is replaced in one step.
func (b *sockets) attachSockets() error {
	for _, h := range hooks() {
		if err := b.attachHook(h); err != nil {
			return fmt.Errorf("attaching %s to cgroup %s: %w", h.name, b.opts.CgroupRoot, err)
		}
	}
	return nil
}

func (b *sockets) attachHook(h hook) error {
	path := filepath.Join(b.dirs.links, h.name)
	prog := b.programs.Programs[h.name]
	attached := false
	var olds []link.Link // of no use; they go after the new one is there
	defer func() {
		for _, l := range olds {
			_ = l.Close()
		}
	}()
	elsewhere := b.older.links(h.name)
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
		if attached, err = b.reuse(old, prog); err != nil {
			return err
		}
		if attached && pin != path {
			if err := replacePin(old, path); err != nil { // this moves the pin
				return err
			}
		}
	}
	if !attached {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: b.opts.CgroupRoot, Attach: h.at, Program: prog})
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
func (b *sockets) reuse(l link.Link, prog *ebpf.Program) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("asking for its link: %w", err)
	}
	cgroup := info.Cgroup()
	if cgroup == nil || cgroup.CgroupId != b.cgroupID {
		return false, nil
	}
	if id, ok := programID(prog); ok && info.Program == id {
		return true, nil
	}
	if err := l.Update(prog); err != nil {
		return false, fmt.Errorf("replacing its program: %w", err)
	}
	return true, nil
}

func programID(p *ebpf.Program) (ebpf.ProgramID, bool) {
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

// attach makes the kernel run the programs, once the maps are filled. check:
// see that it still does.
func (b *sockets) attach(check bool) error {
	if b.attached && !check {
		return nil
	}
	if err := b.keepPins(); err != nil {
		return err
	}
	if !b.attached {
		b.moveNotes() // the programs that noted it until now are replaced next
	}
	if err := b.attachSockets(); err != nil {
		return err
	}
	if b.attached {
		return nil
	}
	b.attached = true
	if err := b.adoptMaps(); err != nil {
		return err
	}
	b.older.retire()
	if b.modeFlags&askNamespaces != 0 {
		b.pods = pods.Start(b.opts.CgroupRoot, b.all[sockMapNamespaces], b.all[sockMapStrangers], b.cfg.Log)
		b.watching.Store(b.pods)
	}
	return nil
}

// checkAttached is an error where a hook does not run our program, or a map is not
// pinned, by which the next agent finds it.
func (b *sockets) checkAttached() error {
	if !b.attached {
		return nil
	}
	var errs []error
	for _, h := range hooks() {
		errs = append(errs, b.checkHook(h))
	}
	for name := range b.all {
		if b.toAdopt[name] == nil {
			errs = append(errs, b.checkPin(name))
		}
	}
	return errors.Join(errs...)
}

func (b *sockets) checkHook(h hook) error {
	l, err := link.LoadPinnedLink(filepath.Join(b.dirs.links, h.name), nil)
	if err != nil {
		return fmt.Errorf("%s is not attached: %w", h.name, err)
	}
	info, err := l.Info()
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("asking for the link of %s: %w", h.name, err)
	}
	cgroup := info.Cgroup()
	id, ok := programID(b.programs.Programs[h.name])
	if cgroup == nil || cgroup.CgroupId != b.cgroupID || ok && info.Program != id {
		return fmt.Errorf("%s is not attached to cgroup %s any more", h.name, b.opts.CgroupRoot)
	}
	return nil
}
