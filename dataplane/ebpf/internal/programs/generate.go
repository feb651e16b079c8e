package programs

// The programs and maps of bpf/, as Go embeds them. `make generate` installs the
// compiler and runs this; bpf/README.md says how a type gets from C to Go.

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package programs -tags linux -output-stem sock -type pool -type place -type flag -type frontend_kind -type stat -type sum Sock ../../../../bpf/sock.c -- -mcpu=v3 -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
