// Package build compiles what the lab runs.
//
// Kubernetes is built from its Go module, in a module of its own beside this
// one, so that the agent does not share its dependencies. The first build takes
// minutes; later ones are skipped while nothing that they depend on changes.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/lab/e2e/internal/image"
)

// kubernetesModule is where Kubernetes' version is pinned, below the checkout.
const kubernetesModule = "lab/e2e/kubernetes"

// Builder says where to build from and to.
type Builder struct {
	Repo      string // the checkout's folder
	Bin       string // where programs go
	ImageFile string // where the image of the test servers goes
	ImageName string
	Out       io.Writer // progress
}

// Kubernetes compiles Kubernetes' programs and packs agnhost as an image.
func (b Builder) Kubernetes(ctx context.Context) error {
	dir := filepath.Join(b.Repo, kubernetesModule)
	mod, err := readModule(ctx, dir)
	if err != nil {
		return err
	}
	flags := []string{"-trimpath", "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=" + mod.version}
	want, err := stamp(ctx, dir, append(flags, b.ImageName))
	if err != nil {
		return err
	}
	results := []string{b.ImageFile}
	for _, pkg := range mod.programs {
		results = append(results, filepath.Join(b.Bin, path.Base(pkg)))
	}
	stampFile := filepath.Join(b.Bin, "kubernetes.stamp")
	if have, err := os.ReadFile(stampFile); err == nil && string(have) == want && present(results) {
		_, _ = fmt.Fprintf(b.Out, "  Kubernetes %s is built already\n", mod.version)
		return nil
	}
	if err := os.MkdirAll(b.Bin, 0o755); err != nil {
		return fmt.Errorf("building Kubernetes: %w", err)
	}
	_, _ = fmt.Fprintf(b.Out, "  building Kubernetes %s: about ten minutes the first time\n", mod.version)
	for _, pkg := range mod.programs {
		if err := b.compile(ctx, dir, pkg, flags); err != nil {
			return err
		}
	}
	if err := image.Write(b.ImageFile, image.Spec{
		Name: b.ImageName, Program: filepath.Join(b.Bin, "agnhost"), Args: []string{"pause"},
	}); err != nil {
		return err
	}
	return os.WriteFile(stampFile, []byte(want), 0o644)
}

// Image puts the agent's image together in a folder, with what the project
// itself builds it by.
func (b Builder) Image(ctx context.Context, dir, name string) error {
	began := time.Now()
	cmd := exec.CommandContext(ctx, "go", "run", "./deploy/image", "-arch="+runtime.GOARCH, "-name="+name, "-version=lab", "-out="+dir)
	cmd.Dir = b.Repo
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the agent's image: %w\n%s", err, output)
	}
	_, _ = fmt.Fprintf(b.Out, "  %5.1fs  built the agent's image\n", time.Since(began).Seconds())
	return nil
}

// Agent compiles the checkout's own agent.
func (b Builder) Agent(ctx context.Context) error {
	return b.compile(ctx, b.Repo, "./cmd/switchyard", []string{"-trimpath"})
}

func (b Builder) compile(ctx context.Context, dir, pkg string, flags []string) error {
	began := time.Now()
	args := append([]string{"build"}, flags...)
	args = append(args, "-o", filepath.Join(b.Bin, path.Base(pkg)), pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, output)
	}
	_, _ = fmt.Fprintf(b.Out, "  %5.1fs  built %s\n", time.Since(began).Seconds(), path.Base(pkg))
	return nil
}

// module is what the lab needs of Kubernetes' go.mod: the programs are its tools.
type module struct {
	version  string
	programs []string
}

func readModule(ctx context.Context, dir string) (module, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "edit", "-json")
	cmd.Dir = dir
	data, err := cmd.Output()
	if err != nil {
		return module{}, fmt.Errorf("reading %s/go.mod: %w", dir, err)
	}
	return parseModule(data)
}

func parseModule(data []byte) (module, error) {
	var file struct {
		Require []struct{ Path, Version string }
		Tool    []struct{ Path string }
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return module{}, fmt.Errorf("reading Kubernetes' go.mod: %w", err)
	}
	var m module
	for _, r := range file.Require {
		if r.Path == "k8s.io/kubernetes" {
			m.version = r.Version
		}
	}
	for _, t := range file.Tool {
		m.programs = append(m.programs, t.Path)
	}
	if m.version == "" || m.programs == nil {
		return module{}, fmt.Errorf("reading Kubernetes' go.mod: version %q and %d programs", m.version, len(m.programs))
	}
	return m, nil
}

// stamp changes with everything that the result depends on.
func stamp(ctx context.Context, dir string, flags []string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "version")
	cmd.Dir = dir
	sum, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version of Go: %w", err)
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", fmt.Errorf("building Kubernetes: %w", err)
		}
		sum = append(sum, data...)
	}
	hash := sha256.Sum256(append(sum, strings.Join(flags, "\x00")...))
	return hex.EncodeToString(hash[:]), nil
}

func present(files []string) bool {
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return false
		}
	}
	return true
}
