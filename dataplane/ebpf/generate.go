package ebpf

// The programs and maps of bpf/, as Go embeds them. `make generate` installs
// the compiler and makes them anew.
//
// How the packet path joins in: internal/packet has a generate line of its own
// with the same flags (for packet.c) and offers
//
//	Spec() (*ebpf.CollectionSpec, error)       // of packet.c, constants not set
//	Start(ctx, Config) (*Path, error)          // attach, follow devices, age connections
//	(*Path).SetNode(*dataplane.Node) error     // pods by interface, addresses
//	(*Path).Close() error                      // stop following; forwarding stays
//	Cleanup(pinDir string) error               // detach and unpin all that Start did
//
// with Config{Collection *ebpf.Collection, PinDir string, Log *slog.Logger,
// Families, MasqueradeBit, LocalhostNodePorts}. This package creates every map
// of Spec (those of bpf/maps.h and bpf/stats.h once, shared with sock.c), pins
// them under PinDir/maps by their names, sets sizes (connections by
// MaxConnections) and the constants that both have (host_netns_cookie), loads
// the collection and hands it to Start after the first Sync has filled the maps.

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package ebpf -tags linux sock ../../bpf/sock.c -- -mcpu=v3 -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
