package load

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pin moves all threads of this process to one CPU, where little else gets a turn.
// Client and server share it: what is timed is then work, not how fast an idle CPU
// wakes up.
func pin(cpu int) error {
	const highest = -20
	var set unix.CPUSet
	set.Set(cpu)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("listing threads: %w", err)
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return fmt.Errorf("listing threads: %w", err)
		}
		// A thread that has ended needs no CPU. New ones inherit.
		if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("moving to CPU %d: %w", cpu, err)
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, highest); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("raising the priority: %w", err)
		}
	}
	return nil
}

// cpuTime is the CPU time of another process, to the nanosecond.
func cpuTime(pid int) (time.Duration, error) {
	const ofProcess = 2 // CPUCLOCK_SCHED, see clock_getcpuclockid(3)
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofProcess), &t); err != nil {
		return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}
