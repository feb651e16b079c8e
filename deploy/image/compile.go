package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compile builds the binary for arch. It names no path and no time, and so it
// is the same wherever this commit is built with this version of Go.
func compile(ctx context.Context, o options, arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return nil, fmt.Errorf("compiling: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	to := filepath.Join(dir, "switchyard")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags=-s -w -buildid= -X main.version="+o.version, "-o", to, "./cmd/switchyard")
	cmd.Dir = o.repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling cmd/switchyard: %w\n%s", err, out)
	}
	return os.ReadFile(to)
}

// revision is the commit of the checkout and when it was made, the only time
// that the image knows.
func revision(ctx context.Context, repo string) (hash, at string, err error) {
	cmd := exec.CommandContext(ctx, "git", "log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%H %cd")
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("asking git for the commit of %s: %w", repo, err)
	}
	hash, at, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok {
		return "", "", fmt.Errorf("asking git for the commit of %s: it says %q", repo, out)
	}
	return hash, at, nil
}
