// Package ipvs is the backend on IPVS: the kernel's load balancer picks the endpoint, constant nftables rules over sets do the rest.
//
// See README.md for a packet's way, and what is where in the kernel.
package ipvs
