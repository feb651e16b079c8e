package ebpf

// The programs and maps of bpf/, as Go embeds them. `make generate` installs
// the compiler and makes them again.

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package ebpf -tags linux sock ../../bpf/sock.c -- -mcpu=v3 -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
