package config

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the files must be quiet before they are read again.
	settle = 200 * time.Millisecond
	// look is how often they are looked at anyway: notices do not tell of
	// everything behind a symbolic link.
	look = 10 * time.Second
)

// Follower watches the files that a Config was read from.
type Follower struct {
	Log *slog.Logger
	// Load reads them again and validates.
	Load func() (*Config, error)
	// Apply takes up what a running agent can.
	Apply func(*Config)
}

// Run follows the files of now until ctx ends; that is no error. A change that
// needs a new start is one, as in kube-proxy. Files that make no sense are
// logged, and what is in force stays: kube-proxy would end.
func (f *Follower) Run(ctx context.Context, now *Config) error {
	if len(now.Files) == 0 {
		return nil
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		f.Log.Warn("no notice of changes to the configuration; looking now and then", "every", look, "error", err)
		notify = &fsnotify.Watcher{}
	} else {
		defer func() { _ = notify.Close() }()
	}
	for _, file := range now.Files {
		if err == nil {
			// The directory, as a ConfigMap's files are replaced by renaming.
			_ = notify.Add(filepath.Dir(file))
		}
	}
	last := now.text
	timer := time.NewTimer(settle) // it may have changed since it was read
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-notify.Events:
			timer.Reset(settle)
			continue
		case err := <-notify.Errors: // an overflow, say: look
			f.Log.Debug("following configuration files", "error", err)
		case <-timer.C:
		}
		timer.Reset(look)
		if text := contents(now.Files); !bytes.Equal(text, last) {
			last = text
			if now, err = f.changed(now); err != nil {
				return err
			}
		}
	}
}

// changed takes up what the files say now.
func (f *Follower) changed(now *Config) (*Config, error) {
	files := strings.Join(now.Files, ", ")
	next, err := f.Load()
	if err != nil {
		f.Log.Error("the configuration changed and is wrong; what is in force stays", "files", files, "error", err)
		return now, nil
	}
	live, restart := now.Changes(next)
	if len(restart) > 0 {
		return now, fmt.Errorf("the configuration in %s changed (%s); ending so that the agent is started again with it",
			files, strings.Join(restart, ", "))
	}
	if len(live) > 0 {
		f.Log.Info("the configuration changed and is taken up", "files", files, "fields", live)
		f.Apply(next)
	}
	return next, nil
}

// contents tells whether files changed. One that cannot be read counts as empty.
func contents(files []string) []byte {
	h := sha256.New()
	for _, file := range files {
		text, _ := os.ReadFile(file)
		_, _ = fmt.Fprintf(h, "%d:%s", len(text), text)
	}
	return h.Sum(nil)
}
