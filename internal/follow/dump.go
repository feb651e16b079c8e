package follow

import (
	"errors"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// mostDumps is how often something is read that others change meanwhile.
const mostDumps = 20

// ErrInterrupted says that a dump may lack something, because what it lists
// changed meanwhile (NLM_F_DUMP_INTR).
var ErrInterrupted = errors.New("it changed while it was read")

// Interrupted reports whether an error is that of a dump that was interrupted, by
// a change or by a signal. The next one may be whole.
func Interrupted(err error) bool {
	return errors.Is(err, ErrInterrupted) || errors.Is(err, nl.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
}

// Whole reads something by a dump until none interrupts it. If each of many is
// interrupted, it returns the last one and its error.
func Whole[T any](dump func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		out, err := dump()
		if try == mostDumps || !Interrupted(err) {
			return out, err
		}
	}
}
