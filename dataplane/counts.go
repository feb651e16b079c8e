package dataplane

// Count is a number that a backend tells of itself, for the metrics. A backend
// that has some has a method Counts, which may be called beside all others.
type Count struct {
	Name   string // of the metric: kubeproxy_… where kube-proxy has it, else switchyard_…
	Help   string
	Grows  bool // it only grows: a counter, not a gauge
	Labels []Label
	Value  float64
}

// Label tells Counts of one name apart; all of them have the same labels in the
// same order.
type Label struct{ Name, Value string }
