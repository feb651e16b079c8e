package netlab

import (
	"os"
	"strconv"
	"time"
)

// slownessVariable says in the environment how many times slower than a real
// machine this one is: an emulated one is 10 to 20 times, and what takes it
// long is not wrong. lab/vm sets it; nobody else should.
const slownessVariable = "SWITCHYARD_TEST_SLOWNESS"

// Patient is how long to take for what takes so long on a real machine: limits
// of time, pauses, and the intervals of loads, which would take an emulated
// machine all it has.
func Patient(d time.Duration) time.Duration { return d * time.Duration(slowness()) }

// slow reports whether this machine is slower than a real one.
func slow() bool { return slowness() > 1 }

func slowness() int {
	n, err := strconv.Atoi(os.Getenv(slownessVariable))
	if err != nil || n < 1 {
		return 1
	}
	return n
}
