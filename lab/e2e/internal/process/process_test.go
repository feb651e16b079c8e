package process

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 4711 14 15"
	cases := map[string]struct {
		line string
		want stat
		bad  bool
	}{
		"plain":                    {line: "42 (etcd)" + tail, want: stat{'S', 4711}},
		"spaces in the name":       {line: "42 (a b c)" + tail, want: stat{'S', 4711}},
		"parentheses in the name":  {line: "42 (a) Z 1) )" + tail, want: stat{'S', 4711}},
		"a zombie":                 {line: "42 (etcd)" + strings.Replace(tail, "S", "Z", 1), want: stat{'Z', 4711}},
		"too short":                {line: "42 (etcd) S 1 2", bad: true},
		"no name":                  {line: "42", bad: true},
		"start is not a number":    {line: "42 (etcd)" + strings.Replace(tail, "4711", "x", 1), bad: true},
		"empty, the process ended": {line: "", bad: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := parseStat(c.line)
			if (err != nil) != c.bad {
				t.Fatalf("error %v, want one: %v", err, c.bad)
			}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// What a record no longer describes is left alone.
func TestStopSparesOthers(t *testing.T) {
	change := map[string]func(*Record){
		"another process has the pid now": func(r *Record) { r.Began-- },
		"the machine was booted since":    func(r *Record) { r.Boot = "another" },
	}
	for name, spoil := range change {
		t.Run(name, func(t *testing.T) {
			s, cmd := startSleep(t)
			r, alive := s.Find("sleep")
			if !alive {
				t.Fatal("the recorded process should be found alive")
			}
			spoil(&r)
			data, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.file("sleep"), data, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := s.Kill("sleep"); err != nil {
				t.Fatal(err)
			}
			if stat, err := readStat(cmd.Process.Pid); err != nil || stat.state == 'Z' {
				t.Errorf("a process that is not ours was ended (%c, %v)", stat.state, err)
			}
			if _, err := os.Stat(s.file("sleep")); !os.IsNotExist(err) {
				t.Errorf("the stale record should be gone: %v", err)
			}
		})
	}
}

func TestKillEndsAndForgets(t *testing.T) {
	s, _ := startSleep(t) // nobody collects its exit status: a zombie is not alive
	if err := s.Kill("sleep"); err != nil {
		t.Fatal(err)
	}
	if s.Alive("sleep") {
		t.Error("still alive")
	}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("records left: %v, %v", all, err)
	}
	if err := s.Kill("sleep"); err != nil {
		t.Errorf("to kill it again should be no error: %v", err)
	}
}

func startSleep(t *testing.T) (Set, *exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	s := Set{Records: dir, Logs: filepath.Join(dir, "log")}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := s.record("sleep", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return s, cmd
}
