// Package terminate ends TCP sockets that the socket hooks connected to an endpoint that is gone.
//
// Nothing else tells such a client: it would send into the void until its
// connection times out.
package terminate

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package terminate -tags linux terminate ../../../../bpf/terminate.c -- -mcpu=v3 -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
