package lock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/kerneltest"
)

// holdIn has this test binary take the lock in a directory and keep it.
const holdIn = "SWITCHYARD_TEST_HOLD_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdIn); dir != "" {
		l, err := Take(context.Background(), Options{Dir: dir, As: "run"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		time.Sleep(time.Hour)
		l.Release()
	}
	os.Exit(m.Run())
}

// holder starts a process that holds the lock.
func holder(t *testing.T, dir string, flags uintptr) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdIn+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: flags}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		if flags != 0 && errors.Is(err, unix.EPERM) {
			kerneltest.Unable(t, err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	line := make([]byte, 200)
	n, _ := out.Read(line)
	if got := string(line[:n]); got != "held\n" {
		t.Fatalf("the other process: %s", got)
	}
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func take(dir string, wait time.Duration) (*Lock, error) {
	return Take(context.Background(), Options{Dir: dir, As: "cleanup", Wait: wait})
}

func TestOneAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "switchyard")
	other := holder(t, dir, 0)
	_, err := take(dir, 0)
	var held *HeldError
	if !errors.As(err, &held) {
		t.Fatalf("beside another: %v", err)
	}
	if want := fmt.Sprintf("switchyard run (pid %d)", other.Process.Pid); held.Holder != want {
		t.Errorf("holder is %q, want %q", held.Holder, want)
	}
	kill(other) // SIGKILL
	l, err := take(dir, 0)
	if err != nil {
		t.Fatalf("after the other was killed: %v", err)
	}
	if _, err := take(dir, 0); !errors.As(err, &held) || !strings.HasPrefix(held.Holder, "switchyard cleanup (pid ") {
		t.Errorf("twice in one process: %v", err)
	}
	l.Release()
	if l, err = take(dir, 0); err != nil {
		t.Fatalf("after release: %v", err)
	}
	l.Release()
}

func TestWait(t *testing.T) {
	dir := t.TempDir()
	other := holder(t, dir, 0)
	var log strings.Builder
	time.AfterFunc(300*time.Millisecond, func() { _ = other.Process.Kill() })
	l, err := Take(t.Context(), Options{Dir: dir, As: "run", Wait: 20 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatalf("an agent that ends: %v", err)
	}
	defer l.Release()
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), fmt.Sprint("(pid ", other.Process.Pid, ")")) {
		t.Errorf("it logged %s", log.String())
	}
	begin := time.Now()
	if _, err := take(dir, 300*time.Millisecond); err == nil || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("one that does not end: %v after %v", err, time.Since(begin))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Take(ctx, Options{Dir: dir, Wait: time.Minute}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("its context ended: %v", err)
	}
}

func TestOtherNamespaces(t *testing.T) {
	dir := t.TempDir()
	t.Run("network", func(t *testing.T) {
		holder(t, dir, syscall.CLONE_NEWNET)
		l, err := take(dir, 0)
		if err != nil {
			t.Fatalf("another network namespace: %v", err)
		}
		l.Release()
	})
	t.Run("thread", func(t *testing.T) {
		l, err := take(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				var other *Lock
				if other, err = take(dir, 0); err == nil {
					other.Release()
				}
			}
			done <- err
		}()
		if err := <-done; err != nil && (!errors.Is(err, unix.EPERM) || kerneltest.Required()) {
			t.Error(err)
		}
	})
	t.Run("pid", func(t *testing.T) { // a pod is pid 1 of its own, and of the node some other
		other := holder(t, dir, syscall.CLONE_NEWPID)
		_, err := take(dir, 0)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", other.Process.Pid)) {
			t.Errorf("got %v, want pid %d", err, other.Process.Pid)
		}
	})
}

// TestRootOnly: whoever can open the file could keep every agent from starting.
func TestRootOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made by a kubelet")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := take(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	for path, want := range map[string]os.FileMode{dir: os.ModeDir | 0o700, l.file.Name(): 0o600} {
		s, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if s.Mode() != want {
			t.Errorf("%s is %v, want %v", path, s.Mode(), want)
		}
	}
}
