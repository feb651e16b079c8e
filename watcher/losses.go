package watcher

import (
	"log/slog"

	"github.com/switchyard-io/switchyard/watcher/loglimit"
)

const (
	// mostNames bounds the names in one line of the log.
	mostNames = 5
	// mostReported bounds the Services that are reported at once.
	mostReported = 100
)

// losses reports Services that are without a frontend. It belongs to Next's caller.
type losses struct {
	log    *slog.Logger
	report func(Loss) // nil: nobody is told, except the log
	lines  loglimit.Limit
}

// tell writes a line for each address of which somebody is without since the
// last call, and reports the losses.
func (l *losses) tell(lost []Loss) {
	if len(lost) == 0 {
		return
	}
	var order []address
	byAddress := map[address][]Loss{}
	for _, one := range lost {
		if byAddress[one.address] == nil {
			order = append(order, one.address)
		}
		byAddress[one.address] = append(byAddress[one.address], one)
	}
	for _, a := range order {
		l.write(byAddress[a])
	}
	if l.report == nil {
		return
	}
	for _, one := range lost[:min(len(lost), mostReported)] {
		l.report(one)
	}
}

// write logs those who lost one address.
func (l *losses) write(lost []Loss) {
	others, ok := l.lines.May(len(lost))
	if !ok {
		return
	}
	var names []string
	for _, one := range lost[:min(len(lost), mostNames)] {
		names = append(names, one.loser.name())
	}
	first := lost[0]
	args := []any{
		"address", first.address.addr.String(), "protocol", first.address.protocol.String(),
		"holder", first.holder.name(), "without", names,
	}
	if more := len(lost) - len(names); more > 0 {
		args = append(args, "more", more)
	}
	if others > 0 {
		args = append(args, "others", others)
	}
	l.log.Warn("several Services want the same address and port; switchyard status has all of them", args...)
}
