package netlab

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// bpfFS is where the bpf file system is mounted, if it is.
const bpfFS = "/sys/fs/bpf"

func pinDir(lab, node string) string { return filepath.Join(bpfFS, lab+"-"+node) }

// removePins removes what a node pinned. Nobody of the lab runs any more.
func removePins(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing pins: %w", err)
	}
	return nil
}

// removeLeftoverPins removes the pins of labs whose process is gone.
func removeLeftoverPins(log *slog.Logger) {
	entries, err := os.ReadDir(bpfFS)
	if err != nil {
		return // there is none
	}
	for _, e := range entries {
		if !leftover(e.Name()) {
			continue
		}
		if err := removePins(filepath.Join(bpfFS, e.Name())); err != nil {
			log.Warn("removing what a killed lab left", "error", err)
		}
	}
}
