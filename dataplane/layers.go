package dataplane

import "fmt"

// LayerError says which layer of a Layered Backend failed. Its Layer is one of
// the Driver's Layers.
type LayerError struct {
	Layer string
	Err   error
}

func (e *LayerError) Error() string { return fmt.Sprintf("%s: %v", e.Layer, e.Err) }
func (e *LayerError) Unwrap() error { return e.Err }
