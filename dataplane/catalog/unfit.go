package catalog

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/dataplane"
)

// OfMachine reports whether an error of a Sync says what this machine cannot do
// or does not permit, so that the same backend fails again however often it is
// tried. A Service that is refused by itself says nothing of the machine.
func OfMachine(err error) bool {
	if errors.As(err, new(*dataplane.PartialError)) {
		return false
	}
	return slices.ContainsFunc([]error{
		dataplane.ErrUnsupported,
		unix.EPERM, unix.EACCES, unix.EROFS,
		unix.ENOSYS, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOPROTOOPT,
	}, func(reason error) bool { return errors.Is(err, reason) })
}

// LayerOf returns the layer that failed with err in a backend of a choice.
// Unless the error names it, that is the packet backend, which comes last.
func (c Choice) LayerOf(err error) string {
	if of := (*dataplane.LayerError)(nil); errors.As(err, &of) {
		return of.Layer
	}
	return c.Layers[len(c.Layers)-1]
}

// unfit returns a Driver that fails with what is known of its backend.
func unfit(d dataplane.Driver, reason error) dataplane.Driver {
	d.Probe = nil
	d.Open = func(context.Context, dataplane.Config) (dataplane.Backend, error) { return nil, reason }
	return d
}

// Fit returns drivers, of which those that proved unfit fail with the reason.
func (o Options) Fit(drivers []dataplane.Driver) []dataplane.Driver {
	for i, d := range drivers {
		if reason := o.Unfit[d.Name]; reason != nil {
			drivers[i] = unfit(d, reason)
		}
	}
	return drivers
}
