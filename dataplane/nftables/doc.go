// Package nftables is the backend on nftables: the kernel's NAT translates, by constant rules over maps that say where each frontend's connections go.
//
// See README.md for a packet's way, and what is where in the kernel.
package nftables
