// Package hostfirewall lets Services' connections through a host's iptables rules.
//
// Docker, ufw and firewalld have FORWARD or INPUT drop what nobody accepts. The
// iptables backend accepts its connections itself, as kube-proxy does
// (KUBE-PROXY §1.13). A table of nftables cannot: a packet is dropped if any table
// drops it. So a Keeper writes a chain of ours, with a jump to it, where iptables'
// rules drop the rest, and nowhere else.
package hostfirewall
