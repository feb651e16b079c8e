// Package conformance is one table of behaviour, run with real packets on every backend.
//
// It holds tests only. Each backend is a column, and a backend with several
// variants (iptables over nf_tables or over legacy xtables) one column for
// each. A column has a lab of its own (package netlab): two nodes with pods, an
// outside client and a routed network. On each node the backend runs in a
// process of its own, so that it can be killed and its commands be made to
// fail. See README.md for how to run it and how to add a case.
package conformance
