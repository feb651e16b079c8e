package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

// TestChooseFamilies: a backend that cannot program all families is taken only
// where no other one can.
func TestChooseFamilies(t *testing.T) {
	driver := func(name string, works ...dataplane.Family) dataplane.Driver {
		open := func(_ context.Context, cfg dataplane.Config) (dataplane.Backend, error) {
			_, err := cfg.Usable(func(f dataplane.Family) error {
				if !slices.Contains(works, f) {
					return fmt.Errorf("%s has none: %w", name, dataplane.ErrUnsupported)
				}
				return nil
			})
			return idle{}, err
		}
		return dataplane.Driver{Name: name, Open: open}
	}
	none, four, six, both := driver("none"), driver("four", dataplane.IPv4), driver("six", dataplane.IPv6), driver("both", dataplane.IPv4, dataplane.IPv6)
	for _, c := range []struct {
		name    string
		drivers []dataplane.Driver
		want    string
		err     string
	}{
		{"auto", []dataplane.Driver{four, both}, "both", ""},
		{"auto", []dataplane.Driver{none, four, six}, "four", ""},
		{"four", []dataplane.Driver{four, both}, "four", ""},
		{"six", []dataplane.Driver{four, six}, "six", ""},
		{"none", []dataplane.Driver{none, both}, "", "backend none: IPv4: none has none"},
		{"auto", []dataplane.Driver{none}, "", "no backend works here: backend none: IPv4: none has none"},
	} {
		cfg := dataplane.Config{Log: slog.New(slog.DiscardHandler), Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}}
		got, err := Choose(t.Context(), c.name, c.drivers, cfg)
		if got.Name != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s of %v: got %q, %v; want %q, %q", c.name, Names(c.drivers), got.Name, err, c.want, c.err)
		}
		if checked := Check(t.Context(), c.name, c.drivers, cfg); fmt.Sprint(checked) != fmt.Sprint(err) {
			t.Errorf("%s of %v: Check says %v, Choose %v", c.name, Names(c.drivers), checked, err)
		}
	}
}

// idle is a backend that is only opened and closed.
type idle struct{ dataplane.Backend }

func (idle) Close() error { return nil }

func TestChoose(t *testing.T) {
	driver := func(name string, err error) dataplane.Driver {
		return dataplane.Driver{
			Name: name,
			Open: func(context.Context, dataplane.Config) (dataplane.Backend, error) { return idle{}, err },
		}
	}
	lacking := fmt.Errorf("the kernel has no ip_vs: %w", dataplane.ErrUnsupported)
	for _, c := range []struct {
		name    string
		drivers []dataplane.Driver
		want    string // the backend chosen, or else
		err     string // a part of the error
	}{
		{"b", []dataplane.Driver{driver("a", nil), driver("b", nil)}, "b", ""},
		{"auto", []dataplane.Driver{driver("a", nil), driver("b", nil)}, "a", ""},
		{"auto", []dataplane.Driver{driver("a", lacking), driver("b", nil)}, "b", ""},
		{"auto", []dataplane.Driver{driver("a", lacking), driver("b", errors.New("no permission"))}, "", "no backend works here: backend a: the kernel has no ip_vs"},
		{"a", []dataplane.Driver{driver("a", lacking), driver("b", nil)}, "", "backend a: the kernel has no ip_vs"},
		{"c", []dataplane.Driver{driver("a", nil), driver("b", nil)}, "", `there is no backend "c"; there is auto, a, b`},
	} {
		cfg := dataplane.Config{Log: slog.New(slog.DiscardHandler)}
		got, err := Choose(t.Context(), c.name, c.drivers, cfg)
		if got.Name != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s of %v: got %q, %v; want %q, %q", c.name, Names(c.drivers), got.Name, err, c.want, c.err)
		}
		if checked := Check(t.Context(), c.name, c.drivers, cfg); fmt.Sprint(checked) != fmt.Sprint(err) {
			t.Errorf("%s of %v: Check says %v, Choose %v", c.name, Names(c.drivers), checked, err)
		}
	}
}
