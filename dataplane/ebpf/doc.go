// Package ebpf accelerates a packet backend: it translates sockets as they connect or send.
//
// README.md draws the maps and says how an update is atomic.
package ebpf
