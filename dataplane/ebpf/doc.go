// Package ebpf is the backend that forwards by eBPF: sockets are translated as they connect, packets as they come in.
//
// README.md draws the maps and tells how an update is atomic.
package ebpf
