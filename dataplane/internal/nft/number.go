package nft

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// An endpoint's number is what nftables' "jhash" gives for its address and
// port, so that packets can note it by themselves.
const (
	NumberSeed    = 0x53594144
	NumberModulus = 1<<32 - 1
)

// EndpointNumber returns the number of an endpoint.
func EndpointNumber(a netip.AddrPort) uint32 {
	h := jenkins([]byte(EndpointBytes(a)), NumberSeed)
	return uint32(uint64(h) * NumberModulus >> 32)
}

// jenkins is the kernel's jhash (Bob Jenkins' lookup3), of a whole number of
// four-byte words.
func jenkins(key []byte, seed uint32) uint32 {
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(key[4*i:]) }
	start := 0xdeadbeef + uint32(len(key)) + seed
	a, b, c := start, start, start
	for len(key) > 12 {
		a, b, c = a+word(0), b+word(1), c+word(2)
		a, b, c = mix(a, b, c)
		key = key[12:]
	}
	// What is left the kernel takes as bytes, the first the lowest.
	tail := [3]uint32{}
	for i, v := range key {
		tail[i/4] |= uint32(v) << (8 * (i % 4))
	}
	if len(key) == 0 {
		return c
	}
	return final(a+tail[0], b+tail[1], c+tail[2])
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	for _, turns := range [2][3]int{{4, 6, 8}, {16, 19, 4}} {
		a -= c
		a ^= bits.RotateLeft32(c, turns[0])
		c += b
		b -= a
		b ^= bits.RotateLeft32(a, turns[1])
		a += c
		c -= b
		c ^= bits.RotateLeft32(b, turns[2])
		b += a
	}
	return a, b, c
}

func final(a, b, c uint32) uint32 {
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return c
}
