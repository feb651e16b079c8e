// Package terminate ends sockets that the socket hooks connected to an endpoint that is gone.
//
// A connected UDP socket would send into the void for ever: nothing tells it,
// and it asks the hooks no more. Ended, a read fails with ECONNABORTED and a
// write with EDESTADDRREQ, and what a client does then, to connect anew, gives
// it another endpoint.
package terminate

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package terminate -tags linux terminate ../../../../bpf/terminate.c -- -mcpu=v3 -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
