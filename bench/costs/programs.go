package costs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Program is how large one BPF program is.
type Program struct {
	Name                        string
	Verified, Translated, Jited int // instructions that the verifier walked; bytes
}

// programs counts the BPF programs of this process's backend: those at the pinned
// links, and others that it holds.
func programs(pinDir string) ([]Program, error) {
	attached, err := linked(pinDir)
	if err != nil {
		return nil, err
	}
	names := map[ebpf.ProgramID]string{}
	for name, id := range attached {
		names[id] = name
	}
	if err := eachFD(func(info map[string]string) error {
		id, err := strconv.ParseUint(info["prog_id"], 10, 32)
		if _, ok := names[ebpf.ProgramID(id)]; err == nil && !ok {
			names[ebpf.ProgramID(id)] = ""
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var out []Program
	for id, name := range names {
		p, err := programSize(id, name)
		if err != nil {
			return nil, fmt.Errorf("looking at BPF program %d (%s): %w", id, name, err)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Program) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// programSize asks the kernel about a program. The name that it has of it may be cut.
func programSize(id ebpf.ProgramID, name string) (Program, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return Program{}, err
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil {
		return Program{}, err
	}
	if name == "" {
		name = info.Name
	}
	verified, _ := info.VerifiedInstructions()
	translated, err := info.TranslatedSize()
	if err != nil {
		return Program{}, err
	}
	jited, err := info.JitedSize()
	return Program{name, int(verified), translated, int(jited)}, err
}

// linked returns the programs at the links pinned below a directory, by the names
// of the pins.
func linked(dir string) (map[string]ebpf.ProgramID, error) {
	out := map[string]ebpf.ProgramID{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(path)) != "links" {
			return err
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("opening the link %s: %w", path, err)
		}
		info, err := l.Info()
		if err = errors.Join(err, l.Close()); err != nil {
			return fmt.Errorf("asking for the link %s: %w", path, err)
		}
		out[d.Name()] = info.Program
		return nil
	})
	return out, err
}

// programs counts instructions. They do not depend on how many Services there are.
func (c *counted) programs() error {
	if c.name != nameEBPF || c.services != few {
		return nil
	}
	var all []Program
	if err := c.agent.Call("Costs.Programs", struct{}{}, &all); err != nil {
		return err
	}
	for _, p := range all {
		c.bench.add(bpfProgram+p.Name, 0,
			Cost{What: "instructions that the verifier walks", Unit: "instructions", Value: float64(p.Verified)},
			Cost{What: "instructions", Unit: "bytes", Value: float64(p.Translated)},
			Cost{What: "machine code", Unit: "bytes", Value: float64(p.Jited)})
	}
	return nil
}
