package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

func TestCPUTime(t *testing.T) {
	// user, system, and both of children that have ended: fields 14 to 17
	stat := "42 (a name) of its own) S 1 1 1 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 99" + strings.Repeat(" 0", 30)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "42"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"stat": stat, "status": "VmHWM:\t 20 kB\nVmRSS:\t 10 kB\n"} {
		if err := os.WriteFile(filepath.Join(dir, "42", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := procfs.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := used(fs, 42)
	if err != nil || got.CPU+got.Children != time.Second {
		t.Errorf("%+v, %v; want 1s", got, err)
	}
	const kib = 1024
	if got.Resident != 10*kib || got.Peak != 20*kib {
		t.Errorf("%+v; want 10 and 20 KiB", got)
	}
}
