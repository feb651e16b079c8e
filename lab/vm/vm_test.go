package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestModulesOf(t *testing.T) {
	for _, test := range []struct {
		name    string
		dep     string
		folders []string
		want    string
		err     string
	}{
		{"what is not asked for stays out", "kernel/fs/xfs.ko:\nkernel/net/sctp/sctp.ko:\n", []string{"net/sctp/"}, "kernel/net/sctp/sctp.ko", ""},
		{"what a module needs comes before it, from any folder",
			"kernel/net/netfilter/ipvs/ip_vs_rr.ko: kernel/net/netfilter/ipvs/ip_vs.ko kernel/lib/libcrc32c.ko\nkernel/net/netfilter/ipvs/ip_vs.ko: kernel/lib/libcrc32c.ko\nkernel/lib/libcrc32c.ko:\n",
			[]string{"net/netfilter/"}, "kernel/lib/libcrc32c.ko kernel/net/netfilter/ipvs/ip_vs.ko kernel/net/netfilter/ipvs/ip_vs_rr.ko", ""},
		{"a file, compressed or not", "kernel/drivers/net/dummy.ko.xz:\nkernel/drivers/net/dummy2.ko.xz:\n", []string{"drivers/net/dummy.ko"}, "kernel/drivers/net/dummy.ko.xz", ""},
		{"a need without a line", "kernel/net/a.ko: kernel/net/b.ko\n", []string{"net/"}, "", "kernel/net/b.ko is needed and has no line"},
		{"a circle", "kernel/net/a.ko: kernel/net/b.ko\nkernel/net/b.ko: kernel/net/a.ko\n", []string{"net/"}, "", "depends on itself"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := modulesOf(test.dep, test.folders)
			if strings.Join(got, " ") != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("%v, %v; want %s, an error with %q", got, err, test.want, test.err)
			}
		})
	}
}

func TestImageOf(t *testing.T) {
	for _, test := range []struct {
		name, depends string
		series        series
		want          string
	}{
		{"the newest image", "linux-image-amd64\n  Depends: linux-image-6.1.0-30-amd64\n", series{name: "6.1"}, "linux-image-6.1.0-30-amd64"},
		{"another series, on a newer Debian", "linux-image-amd64\n  Depends: linux-image-6.12.9+deb13-amd64\n", series{name: "6.1"}, ""},
		{"a split one", "linux-image-amd64\n  Depends: linux-base-amd64\n  Depends: linux-image-7.3.4+deb13-amd64\n  Depends: linux-modules-amd64\n", series{name: newest}, "linux-image-7.3.4+deb13-amd64"},
		{"no such package", "", series{name: "6.12"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := imageOf(test.depends, test.series); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestPartsOf(t *testing.T) {
	for depends, want := range map[string]string{
		"linux-image-6.1.0-30-amd64\n  Depends: kmod\n  Depends: linux-base\n |Depends: initramfs-tools\n  Breaks: linux-old-6.1.0-30-amd64\n":                                                      "linux-image-6.1.0-30-amd64",
		"linux-image-7.3.4+deb13-amd64\n  PreDepends: linux-base\n  Depends: linux-base-7.3.4+deb13-amd64\n  Depends: linux-binary-7.3.4+deb13-amd64\n  Depends: linux-modules-7.3.4+deb13-amd64\n": "linux-image-7.3.4+deb13-amd64 linux-base-7.3.4+deb13-amd64 linux-binary-7.3.4+deb13-amd64 linux-modules-7.3.4+deb13-amd64",
	} {
		image, _, _ := strings.Cut(depends, "\n")
		if got := strings.Join(partsOf(depends, image), " "); got != want {
			t.Errorf("%s: got %s", image, got)
		}
	}
}

// TestChoose: a number that no series has is the newest kernel's, if that has it.
func TestChoose(t *testing.T) {
	for name, want := range map[string]string{
		"5.10": "5.10", "6.1": "6.1", "newest": "newest", "7": "newest", "7.3": "newest", "all": "6.1 6.12 newest", "six": "", "": "",
	} {
		chosen, err := choose(name)
		var got []string
		for _, s := range chosen {
			got = append(got, s.name)
		}
		if strings.Join(got, " ") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %s, %v; want %s", name, got, err, want)
		}
	}
	k := kernel{version: "7.3.4+deb13-amd64"}
	for name, want := range map[string]bool{"7": true, "7.3": true, "newest": true, "all": true, "7.30": false, "6.1": false, "7.3.4+deb13": false} {
		if k.is(name) != want {
			t.Errorf("is(%q) is %v", name, !want)
		}
	}
}

func TestFollowTests(t *testing.T) {
	for _, test := range []struct {
		name, from string
		out        string
		want       result
	}{
		{"all well", "== p\r\nPASS\r\nvm: exit status 0 p\r\nvm: all tests ended\r\n", "== p\nPASS\n", result{ended: true, passed: []string{"p"}}},
		{"one fails, the next one runs", "vm: exit status 1 p\nvm: exit status 0 q\nvm: all tests ended\n", "", result{true, []string{"q"}, []string{"p (exit status 1)"}}},
		{"a last line without an end", "panic: ouvm: exit status 2 p\nvm: all tests ended\n", "", result{true, nil, []string{"p (exit status 2)"}}},
		{"the machine died", "== p\nhalf a li", "== p\nhalf a li\n", result{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			got, err := followTests(strings.NewReader(test.from), &out)
			if err != nil || out.String() != test.out || !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v, %v, wrote %q; want %+v and %q", got, err, out.String(), test.want, test.out)
			}
		})
	}
}

func TestKernelFaults(t *testing.T) {
	for _, test := range []struct {
		line         string
		bad, warning bool
	}{
		{"[    9.520467] Kernel panic - not syncing: Attempted to kill init!", true, false},
		{"[   12.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008", true, false},
		{"[   12.000001] Oops: 0002 [#1] PREEMPT SMP NOPTI", true, false},
		{"[   12.000002] WARNING: CPU: 1 PID: 77 at net/netfilter/nf_nat_core.c:1", false, true},
		{"[  200.000000] INFO: task agent:77 blocked for more than 120 seconds.", false, true},
		{"[    0.433523] APIC calibration not consistent with PM-Timer: 107ms instead of 100ms", false, false},
	} {
		bad, warnings := kernelFaults(test.line + "\r\n")
		if (len(bad) == 1) != test.bad || (len(warnings) == 1) != test.warning {
			t.Errorf("%s: faults %q, warnings %q", test.line, bad, warnings)
		}
	}
}

func TestScript(t *testing.T) {
	for _, test := range []struct {
		name string
		job  job
		want string
	}{
		{"a package", job{dir: "dataplane/ipvs", args: []string{"-test.run=TestA|TestB"}},
			"cd /src/dataplane/ipvs && echo '== dataplane/ipvs' && sh /tests/twice /tests/dataplane_ipvs '-test.run=TestA|TestB'\necho \"vm: exit status $? dataplane/ipvs\"\n"},
		{"a command", job{dir: ".", command: "echo 'it is'"}, `cd /src/. && echo '== .' && sh -c 'echo '\''it is'\'''` + "\necho \"vm: exit status $? .\"\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := script([]job{test.job}); got != test.want {
				t.Errorf("%s; want %s", got, test.want)
			}
		})
	}
}

// TestTwice: few tests that fail run once more, and count if they fail again.
func TestTwice(t *testing.T) {
	for _, c := range []struct {
		name, binary string
		again        string // the tests that run once more
		fails        bool
	}{
		{"all pass", "echo PASS", "", false},
		{"one fails, then passes", `case "$*" in *-test.run=*) echo PASS;; *) echo '--- FAIL: TestA (1s)'; echo '    --- FAIL: TestA/a_(b);_c (1s)'; exit 1;; esac`, `^TestA$/^a_\(b\);_c$`, false},
		{"two fail", `case "$*" in *-test.run=*) echo PASS;; *) echo '--- FAIL: TestA (1s)'; echo '--- FAIL: TestAB (1s)'; exit 1;; esac`, "^TestA$|^TestAB$", false},
		{"one fails twice", "echo '--- FAIL: TestA (1s)'; exit 1", "^TestA$", true},
		{"one panics", "echo '--- FAIL: TestA (1s)'; exit 2", "", true},
		{"many fail", "for i in 1 2 3 4; do echo \"--- FAIL: Test$i (1s)\"; done; exit 1", "", true},
		{"it does not end", "echo 'panic: test timed out'; exit 2", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			binary := filepath.Join(t.TempDir(), "binary")
			if err := os.WriteFile(binary, []byte("#!/bin/sh\necho \"args: $*\"\n"+c.binary+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("sh", "twice.sh", binary, "-test.v").CombinedOutput()
			_, again, _ := strings.Cut(string(out), "args: -test.v -test.run=")
			again, _, _ = strings.Cut(again, "\n")
			if again != c.again || (err != nil) != c.fails {
				t.Errorf("once more: %q, %v; want %q, an error: %t\n%s", again, err, c.again, c.fails, out)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		args string
		err  string
	}{
		{"--kernel 6.1 ./dataplane/ipvs", ""},
		{"--kernel six", `--kernel: "six" is not one of 5.10, 6.1, 6.12, newest, all and a number of Debian's newest kernel`},
		{"--slow 0", "--slow: 0 is not 1 or more"},
	} {
		_, err := parse(strings.Fields(test.args), io.Discard)
		if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
			t.Errorf("%s: %v, want %q", test.args, err, test.err)
		}
	}
	o, err := parse([]string{"-run", "//hairpin", "-backend", "ebpf", "./dataplane/conformance/", "./dataplane/ipvs"}, io.Discard)
	want := []job{
		{dir: "dataplane/conformance", args: []string{"-test.timeout=18m0s", "-test.run=//hairpin", "-backend=ebpf"}},
		{dir: "dataplane/ipvs", args: []string{"-test.timeout=18m0s", "-test.run=//hairpin"}},
	}
	if err != nil || !reflect.DeepEqual(o.jobs(series{name: "6.1"}), want) || o.limit != 20*time.Minute {
		t.Errorf("%+v, %v; want the jobs %+v", o.jobs(series{name: "6.1"}), err, want)
	}
	for args, want := range map[string]int{
		"": 7, "-run TestCosts": 7, "-kernel 6.1": len(matrix("")), "-backend ipvs": len(matrix("")) - 4, "-backend iptables-legacy": len(matrix("")) - 4,
		"./dataplane/conformance": 4, "-backend iptables ./dataplane/conformance": 1, "-run . ./dataplane/conformance": 1,
		"-backend nonsense ./dataplane/conformance": 1, // which says that there is none
	} {
		o, err := parse(strings.Fields(args), io.Discard)
		if err != nil || len(o.jobs(series{name: "6.1"})) != want {
			t.Errorf("%q: %d jobs, %v; want %d", args, len(o.jobs(series{name: "6.1"})), err, want)
		}
	}
	for args, less := range map[string]bool{"": true, "-kernel newest": false, "-kernel 7": false} {
		o, err := parse(strings.Fields(args), io.Discard)
		if n := len(o.jobs(series{name: newest})); err != nil || n == 0 || (n < len(matrix(""))) != less {
			t.Errorf("%q: %d jobs on the newest kernel, %v", args, n, err)
		}
	}
}

// TestMatrixNamesWhatIsThere: a name that no test has would run nothing, silently.
func TestMatrixNamesWhatIsThere(t *testing.T) {
	for _, p := range append(matrix(""), matrix("nftables")...) {
		var source []byte
		files, err := filepath.Glob(filepath.Join("../..", p.dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source = append(source, b...)
		}
		for _, name := range p.run {
			var words []string // a case's name may be put together
			if p.dir == conformance {
				words = strings.Split(name, "; ")
			} else {
				words = []string{"func " + name + "(t *testing.T)"}
			}
			for _, w := range words {
				if !bytes.Contains(source, []byte(w)) {
					t.Errorf("%s has no %q", p.dir, w)
				}
			}
		}
	}
}
