// Package packet is the packet path of the eBPF backend: its programs on every device, and the connections that age.
//
// bpf/packet.c translates; this package hangs it on ingress and egress of each
// device of the network namespace (only egress of lo), follows devices and
// addresses as they come and go, and removes connections that are over.
package packet

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package packet -tags linux packet ../../../../bpf/packet.c -- -mcpu=v3 -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
