package costs

import (
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// TestTrace: strace sees what a running program reads, from when do is called.
func TestTrace(t *testing.T) {
	kerneltest.NeedRoot(t)
	if _, err := exec.LookPath("strace"); err != nil {
		kerneltest.Unable(t, err)
	}
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pass := func(text string) error {
		if _, err := io.WriteString(in, text); err != nil {
			return err
		}
		_, err := io.ReadFull(out, make([]byte, len(text)))
		return err
	}
	if err := pass("before"); err != nil {
		t.Fatal(err)
	}
	var got tally
	if err := trace(cmd.Process.Pid, &got, func() error { return pass("COMMIT\n") }); err != nil || got != (tally{restored: 7}) {
		t.Errorf("counted %+v, %v; want 7 bytes of input", got, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestTally: what counts is what was given to the kernel, or to iptables-restore.
func TestTally(t *testing.T) {
	for _, tc := range []struct {
		what, lines string
		want        tally
	}{
		{"two messages at once",
			`sendmsg(9, {msg_iov=[{iov_base=[[{nlmsg_len=20, nlmsg_type=0xa10}, "\x00"], [{nlmsg_len=36, nlmsg_type=0xa0c}, "\x02"]], iov_len=56}]}, 0) = 56`,
			tally{messages: 2, bytes: 56}},
		{"a message with no address", `sendto(9, [{nlmsg_len=28, nlmsg_type=RTM_GETLINK}, {}], 28, 0, NULL, 0) = 28`, tally{messages: 1, bytes: 28}},
		{"what is no netlink", `sendto(9, "hello", 5, 0, NULL, 0) = 5`, tally{}},
		{"the input of a program", "read(0, \"*nat\\n\", 4096) = 5\nread(0, \"\", 4096) = 0", tally{restored: 5}},
		{"another file", `read(3, "x", 1) = 1`, tally{}},
		{"maps", "bpf(BPF_MAP_UPDATE_BATCH, {batch={count=4}}, 56) = 0\nbpf(BPF_MAP_DELETE_ELEM, {map_fd=9}, 32) = -1 ENOENT (No such file or directory)\nbpf(BPF_MAP_LOOKUP_ELEM, {map_fd=9}, 32) = 0", tally{maps: 2}},
		{"one that failed", `read(0, 0xc000, 4096) = -1 EAGAIN (Resource temporarily unavailable)`, tally{}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			var got tally
			if err := got.read(strings.NewReader(tc.lines)); err != nil || got != tc.want {
				t.Errorf("counted %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}
