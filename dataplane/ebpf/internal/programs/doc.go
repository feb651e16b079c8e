// Package programs holds the programs and maps of bpf/sock.c and the types that they share with Go.
package programs
