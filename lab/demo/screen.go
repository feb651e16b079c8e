package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is where the demo tells its story: plain text, with a little colour on
// a terminal.
type screen struct {
	w      io.Writer
	colour bool
}

func newScreen(f *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &screen{w: f, colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// The colours, as numbers of terminal control sequences.
const (
	bold  = 1
	red   = 31
	green = 32
)

func (s *screen) paint(colour int, text string) string {
	if !s.colour {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, text)
}

func (s *screen) line(format string, args ...any) {
	_, _ = fmt.Fprintf(s.w, format+"\n", args...) // nobody to tell if nobody reads
}

func (s *screen) heading(format string, args ...any) {
	s.line("\n%s", s.paint(bold, fmt.Sprintf(format, args...)))
}

// verdict is a count of failures, green if there are none.
func (s *screen) verdict(requests, failed int) string {
	colour := green
	if failed > 0 {
		colour = red
	}
	return s.paint(colour, fmt.Sprintf("%d requests, %d failed", requests, failed))
}

// cells is one line of a table with columns of these widths; a negative width
// is aligned to the left.
func (s *screen) cells(widths []int, values ...string) {
	var b strings.Builder
	b.WriteString("  ")
	for i, v := range values {
		pad := strings.Repeat(" ", max(0, max(widths[i], -widths[i])-utf8.RuneCountInString(v)))
		if widths[i] < 0 {
			b.WriteString(" " + v + pad)
		} else {
			b.WriteString(" " + pad + v)
		}
	}
	s.line("%s", strings.TrimRight(b.String(), " "))
}
