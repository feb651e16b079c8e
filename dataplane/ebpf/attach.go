package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/switchyard-io/switchyard/dataplane"
	"github.com/switchyard-io/switchyard/dataplane/ebpf/internal/packet"
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
		{"sock_connect4", ebpf.AttachCGroupInet4Connect},
		{"sock_connect6", ebpf.AttachCGroupInet6Connect},
		{"sock_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sock_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
	}
}

// attachSockets makes every hook run its program: by a new link, or by a
// pinned one, whose program is replaced in one step.
func (b *backend) attachSockets() error {
	for _, h := range hooks() {
		if err := b.attachHook(h); err != nil {
			return fmt.Errorf("attaching %s to cgroup %s: %w", h.name, b.opts.CgroupRoot, err)
		}
	}
	return nil
}

func (b *backend) attachHook(h hook) error {
	path := filepath.Join(b.dirs.links, h.name)
	prog := b.sock.Programs[h.name]
	old, err := link.LoadPinnedLink(path, nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("opening its link: %w", err)
	}
	if err == nil {
		done, err := b.reuse(old, prog)
		if err = errors.Join(err, old.Close()); done || err != nil {
			return err
		}
		// The cgroup of the old link is gone, or is not the one that is wanted now.
		// The old one goes after the new one is there.
		defer func() { _ = old.Close() }()
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: b.opts.CgroupRoot, Attach: h.at, Program: prog})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // the pin holds it
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpinning its old link: %w", err)
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pinning its link: %w", err)
	}
	return nil
}

// reuse makes an old link run the program. false: it is of no use.
func (b *backend) reuse(l link.Link, prog *ebpf.Program) (bool, error) {
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

// detachSockets undoes attachSockets, whoever did it.
func detachSockets(links string) error {
	var errs []error
	for _, h := range hooks() {
		errs = append(errs, detach(filepath.Join(links, h.name)))
	}
	return errors.Join(errs...)
}

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
	if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("detaching link %s: %w", path, err)
	}
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpinning link %s: %w", path, err)
	}
	return nil
}

// attach makes the kernel run the programs, once the maps are filled. check:
// see that it still does.
func (b *backend) attach(ctx context.Context, node *dataplane.Node, check bool) error {
	if b.path != nil && !check {
		return b.setNode(node)
	}
	if b.path == nil {
		b.moveNotes(ebpf.UpdateAny) // the programs that noted it until now are replaced next
	}
	if b.opts.SocketLB {
		if err := b.attachSockets(); err != nil {
			return err
		}
	} else if err := detachSockets(b.dirs.links); err != nil {
		return err
	}
	if b.path != nil {
		if err := b.path.Repair(); err != nil {
			return err
		}
		if err := b.letBegin(); err != nil {
			return err
		}
		return b.setNode(node)
	}
	path, err := packet.Start(ctx, packet.Config{
		Collection: b.packets, LoadBare: b.loadBare, PinDir: b.dirs.root, Log: b.cfg.Log,
		LocalhostNodePorts: b.cfg.LocalhostNodePorts, ConnectionsFlag: "--ebpf-max-connections", Connections: &b.connections, Retired: &b.retired,
	}, node)
	if err != nil {
		return fmt.Errorf("starting the packet path: %w", err)
	}
	b.path, b.pathNode = path, node
	b.flows.Store(path)
	if err := b.letBegin(); err != nil {
		return err
	}
	return b.adoptMaps()
}

// setNode tells the packet path of another Node.
func (b *backend) setNode(node *dataplane.Node) error {
	if b.pathNode == node {
		return nil
	}
	if err := b.path.SetNode(node); err != nil {
		return err
	}
	b.pathNode = node
	return nil
}

// checkAttached is an error where a hook or a device does not run our programs.
func (b *backend) checkAttached() error {
	if b.path == nil {
		return nil
	}
	var errs []error
	if b.opts.SocketLB {
		for _, h := range hooks() {
			errs = append(errs, b.checkHook(h))
		}
	}
	return errors.Join(append(errs, b.path.Check())...)
}

func (b *backend) checkHook(h hook) error {
	l, err := link.LoadPinnedLink(filepath.Join(b.dirs.links, h.name), nil)
	if err != nil {
		return fmt.Errorf("%s is not attached: %w", h.name, err)
	}
	info, err := l.Info()
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("asking for the link of %s: %w", h.name, err)
	}
	cgroup := info.Cgroup()
	id, ok := programID(b.sock.Programs[h.name])
	if cgroup == nil || cgroup.CgroupId != b.cgroupID || ok && info.Program != id {
		return fmt.Errorf("%s is not attached to cgroup %s any more", h.name, b.opts.CgroupRoot)
	}
	return nil
}
