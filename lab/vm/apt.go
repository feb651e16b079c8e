package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// keyring verifies what comes from Debian.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// listsAge is how old the lists of a suite may be.
const listsAge = 24 * time.Hour

// apt is a way to Debian's packages: by this machine's configuration, or by one
// of its own for a suite that this machine does not have. The latter keeps lists
// of its own, so that apt on this machine stays as it is. apt checks the
// signatures in both.
type apt struct {
	options []string
}

// openApt makes the configuration for a suite. It takes the mirror, and how to
// reach it, from this machine's apt. An empty suite means this machine's own.
func openApt(ctx context.Context, suite, cache string) (*apt, error) {
	if suite == "" {
		return &apt{}, nil
	}
	mirror, err := mirrorOf(ctx, suite)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Join(cache, "apt-"+suite))
	if err != nil {
		return nil, fmt.Errorf("readying apt for %s: %w", suite, err)
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("readying apt for %s: %w", suite, err)
		}
	}
	source := fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: amd64\nSigned-By: %s\n", mirror, suite, keyring)
	for file, text := range map[string]string{"debian.sources": source, "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("readying apt for %s: %w", suite, err)
		}
	}
	a := &apt{}
	for _, o := range []string{
		"Dir::Etc::SourceList=" + dir + "/debian.sources", "Dir::Etc::SourceParts=/dev/null",
		"Dir::Etc::Preferences=/dev/null", "Dir::Etc::PreferencesParts=/dev/null",
		"Dir::State=" + dir, "Dir::State::Lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status", "Dir::Cache=" + dir + "/cache",
		"Acquire::Languages=none",
	} {
		a.options = append(a.options, "-o", o)
	}
	info, err := os.Stat(filepath.Join(dir, "updated"))
	if err == nil && time.Since(info.ModTime()) < listsAge {
		return a, nil
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "updated"), nil, 0o644); err != nil {
		return nil, fmt.Errorf("readying apt for %s: %w", suite, err)
	}
	return a, nil
}

// mirrorOf finds where this machine's apt has Debian from. Security updates may
// be elsewhere.
func mirrorOf(ctx context.Context, suite string) (string, error) {
	label := "Debian"
	if strings.HasSuffix(suite, "-security") {
		label = "Debian-Security"
	}
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if has, mirror, ok := strings.Cut(strings.TrimSpace(line), " "); ok && has == label {
			return mirror, nil
		}
	}
	return "", fmt.Errorf("apt has no mirror of %s here, which has suite %s: run apt-get update", label, suite)
}

// update reads the lists of packages again. It runs without apt's own user, who
// may not write into a home or a checkout.
func (a *apt) update(ctx context.Context) error {
	args := append([]string{"update"}, a.options...)
	if len(a.options) > 0 {
		args = append(args, "-o", "APT::Sandbox::User=root")
	}
	_, err := command(ctx, "", "apt-get", args...)
	return err
}

// cache asks the lists.
func (a *apt) cache(ctx context.Context, args ...string) (string, error) {
	return command(ctx, "", "apt-cache", append(args, a.options...)...)
}

// fetch downloads packages into a folder.
func (a *apt) fetch(ctx context.Context, dir string, packages []string) error {
	args := append([]string{"download", "-o", "APT::Sandbox::User=root"}, a.options...)
	_, err := command(ctx, dir, "apt-get", append(args, packages...)...)
	return err
}
