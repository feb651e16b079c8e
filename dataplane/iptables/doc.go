// Package iptables is the backend on iptables, nft or legacy: trees of chains that find the frontend, one chain per pool that picks the endpoint.
//
// See README.md for the chains and a packet's way through them.
package iptables
