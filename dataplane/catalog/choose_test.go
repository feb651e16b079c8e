package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/switchyard-io/switchyard/dataplane"
)

func TestChoose(t *testing.T) {
	driver := func(name string, probe error) dataplane.Driver {
		return dataplane.Driver{
			Name:  name,
			Probe: func(context.Context, dataplane.Config) error { return probe },
			Open:  func(context.Context, dataplane.Config) (dataplane.Backend, error) { return nil, nil },
		}
	}
	// It cannot be opened, and is not probed.
	openProbes := dataplane.Driver{
		Name: "a", OpenProbes: true,
		Open: func(context.Context, dataplane.Config) (dataplane.Backend, error) {
			return nil, fmt.Errorf("the verifier refuses a program: %w", dataplane.ErrUnsupported)
		},
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
		{"auto", []dataplane.Driver{openProbes, driver("b", nil)}, "b", ""},
		{"a", []dataplane.Driver{openProbes, driver("b", nil)}, "", "backend a: opening it: the verifier refuses a program"},
		{"c", []dataplane.Driver{driver("a", nil), driver("b", nil)}, "", `there is no backend "c"; there is auto, a, b`},
	} {
		got, err := Choose(t.Context(), c.name, c.drivers, dataplane.Config{Log: slog.New(slog.DiscardHandler)})
		if got.Name != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s of %v: got %q, %v; want %q, %q", c.name, Names(c.drivers), got.Name, err, c.want, c.err)
		}
	}
}
