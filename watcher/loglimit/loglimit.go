// Package loglimit bounds what tenants can have a node write to its log.
package loglimit

import "time"

const (
	// MostLines is how many lines are written in each minute: whoever may create
	// objects must not be able to fill the disk of every node.
	MostLines = 20
	// Pause is how long lines are counted before the count begins again.
	Pause = time.Minute
)

// Limit is of the lines of one kind. It is used by one goroutine at a time.
type Limit struct {
	Since time.Time // when lines began to be counted
	lines int       // written since then
	left  int       // things of which no line told since one did
}

// May reports whether a line that tells of n things may be written now. If so,
// others is how many things were left out since the last line.
func (l *Limit) May(n int) (others int, ok bool) {
	if now := time.Now(); now.Sub(l.Since) >= Pause {
		l.Since, l.lines = now, 0
	}
	if l.lines++; l.lines > MostLines {
		l.left += n
		return 0, false
	}
	others, l.left = l.left, 0
	return others, true
}
