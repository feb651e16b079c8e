package programs

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// Options say where the programs are attached and pinned, and how large their maps are.
type Options struct {
	// CgroupRoot is the cgroup v2 directory of whose processes' sockets the programs
	// see. Empty means wherever cgroup v2 is mounted.
	CgroupRoot string
	PinDir     string
	// What the maps have room for, as the flags count it.
	MaxFrontends, MaxEndpoints, MaxAffinity int
	// NoCookies makes a kernel from 5.14 on pass for an older one, in tests.
	NoCookies bool
}

// Programs owns the programs, their maps and pins, and the links to the hooks of a
// cgroup.
type Programs struct {
	Maps       map[string]*ebpf.Map // by name
	Collection *ebpf.Collection
	Dirs       Dirs
	CgroupRoot string
	// Narrow says why the cgroup may not hold all processes of the machine. Empty means
	// that nothing suggests so.
	Narrow string
	// Netns is the cookie of the node's network namespace. Zero means the machine's
	// first one.
	Netns    uint64
	Attached bool // by this process

	opts     Options
	log      *slog.Logger
	cgroupID uint64
	ids      map[string]ebpf.ProgramID // of the programs, by hook; 0: the kernel does not tell
	toPin    []string                  // maps that are not pinned, where nothing is in their place
	toAdopt  map[string]*ebpf.Map      // older maps that ours are to be pinned in place of
	older    *older
}

// Probe loads all programs on small maps and pins nothing.
func Probe(o Options, log *slog.Logger) error {
	p, err := prepare(o, log)
	if err != nil {
		return err
	}
	spec, err := p.spec()
	if err == nil {
		for _, m := range spec.Maps {
			m.MaxEntries = min(m.MaxEntries, 64)
		}
		var c *ebpf.Collection
		if c, err = p.load(spec); err == nil {
			c.Close()
		}
	}
	return errors.Join(Judged(err), p.Close())
}

// Open loads the programs on the pinned maps. What forwards now goes on with its own
// programs until Attach. New maps are pinned by Pin.
func Open(o Options, log *slog.Logger) (_ *Programs, err error) {
	p, err := prepare(o, log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(Judged(err), p.Close())
		}
	}()
	spec, err := p.spec()
	if err != nil {
		return nil, err
	}
	if p.older, err = findOlder(p.Dirs, o.PinDir, log); err != nil {
		return nil, err
	}
	if err := p.openMaps(ownMaps(spec)); err != nil {
		return nil, err
	}
	if p.Collection, err = p.load(spec); err != nil {
		return nil, fmt.Errorf("loading the socket programs: %w", err)
	}
	p.ids = programIDs(p.Collection)
	return p, nil
}

// programIDs asks the kernel once: each Sync needs to know.
func programIDs(c *ebpf.Collection) map[string]ebpf.ProgramID {
	ids := map[string]ebpf.ProgramID{}
	for _, h := range Hooks() {
		ids[h.Name], _ = ProgramID(c.Programs[h.Name])
	}
	return ids
}

// Judged marks an error that says what this machine cannot do.
func Judged(err error) error {
	switch {
	case errors.Is(err, dataplane.ErrUnsupported): // it says why already
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, ebpf.ErrNotSupported):
		err = fmt.Errorf("%w: %w", err, dataplane.ErrUnsupported)
	}
	return err
}

// prepare checks what this process may do and finds the cgroup.
func prepare(o Options, log *slog.Logger) (*Programs, error) {
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	p := &Programs{
		Maps: map[string]*ebpf.Map{}, Dirs: makeDirs(o.PinDir), opts: o, log: log, toAdopt: map[string]*ebpf.Map{}, older: &older{},
	}
	var err error
	if p.CgroupRoot, err = CgroupRoot(o.CgroupRoot); err != nil {
		return nil, err
	}
	if o.CgroupRoot == "" {
		p.Narrow = NarrowCgroup(p.CgroupRoot)
	}
	p.cgroupID, err = cgroupID(p.CgroupRoot)
	return p, err
}

// spec returns the programs to load, with their constants and the sizes of their maps
// set.
func (p *Programs) spec() (*ebpf.CollectionSpec, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	if p.Netns, err = NetnsCookie(); err != nil {
		return nil, err
	}
	if p.opts.NoCookies {
		p.Netns = 0
	}
	if p.Narrow != "" {
		p.log.Warn("sockets of other cgroups are left to packets", "reason", p.Narrow)
	}
	s, err := LoadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the socket programs: %w", err)
	}
	setSizes(s.Maps, p.opts)
	if err := s.Variables[SockVarHostNetnsCookie].Set(p.Netns); err != nil {
		return nil, fmt.Errorf("setting %s: %w", SockVarHostNetnsCookie, err)
	}
	return s, nil
}

// load makes the programs of a specification, on the maps of p. IPv6 is loaded beside
// the rest: the kernel takes a fifth of a second to verify the hooks of a family.
func (p *Programs) load(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	all := &ebpf.Collection{Programs: map[string]*ebpf.Program{}}
	var mu sync.Mutex
	var halves errgroup.Group
	for _, ipv6 := range []bool{false, true} {
		half := spec.Copy()
		maps.DeleteFunc(half.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return strings.HasSuffix(name, "6") != ipv6 })
		halves.Go(func() error {
			c, err := ebpf.NewCollectionWithOptions(half, ebpf.CollectionOptions{MapReplacements: p.replacements(half)})
			if err != nil {
				return err
			}
			defer c.Close() // what programs hold lives on
			mu.Lock()
			defer mu.Unlock()
			for name := range half.Programs {
				all.Programs[name] = c.DetachProgram(name)
			}
			return nil
		})
	}
	err := halves.Wait()
	if err == nil {
		return all, nil
	}
	all.Close()
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("this kernel's verifier refuses a program: %w: %w", err, dataplane.ErrUnsupported)
	}
	return nil, err
}

// replacements returns the maps of a specification that are made already.
func (p *Programs) replacements(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	there := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := p.Maps[name]; m != nil {
			there[name] = m
		}
	}
	return there
}

// Attach makes the kernel run the programs, once the maps are filled. check makes it
// see that the kernel still does.
func (p *Programs) Attach(check bool) error {
	if p.Attached && !check {
		return nil
	}
	if err := p.keepPins(); err != nil {
		return err
	}
	if !p.Attached {
		p.moveNotes() // the programs that noted it until now are replaced next
	}
	if err := p.attachHooks(); err != nil {
		return err
	}
	if p.Attached {
		return nil
	}
	p.Attached = true
	if err := p.adoptMaps(); err != nil {
		return err
	}
	p.older.retire()
	return nil
}

// Draining returns how many connections an older version still translates.
func (p *Programs) Draining() int64 { return p.older.left.Load() }

// EmptyOthers leaves sockets to packets whose hooks still run the programs of an
// earlier agent, on maps of their own.
func (p *Programs) EmptyOthers() error {
	if p.Attached {
		return nil
	}
	var errs []error
	if m := p.toAdopt[SockMapFrontends]; m != nil {
		errs = append(errs, empty(m))
	}
	for _, path := range p.older.maps(SockMapFrontends) {
		errs = append(errs, emptyPinned(path))
	}
	return errors.Join(errs...)
}

// Close frees what the process holds. Pins hold what translates.
func (p *Programs) Close() error {
	var errs []error
	if p.older.stop != nil {
		p.older.close()
	}
	if p.Collection != nil {
		p.Collection.Close()
	}
	for _, m := range p.Maps {
		errs = append(errs, m.Close())
	}
	for _, m := range p.toAdopt {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
