package ipvs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/switchyard-io/switchyard/dataplane"
)

// parseTable reads /proc/net/ip_vs, which has the endpoints of all services in
// one file, where netlink has a request for each service.
//
//	Prot LocalAddress:Port Scheduler Flags
//	  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
//	TCP  0A600001:0050 rr
//	  -> 0AF40001:1F90      Masq    1      0          0
//	TCP  [fd96:0000:0000:0000:0000:0000:0000:0001]:0050 rr
func parseTable(text string) (map[serviceKey]map[netip.AddrPort]destination, error) {
	out := map[serviceKey]map[netip.AddrPort]destination{}
	var of map[netip.AddrPort]destination // nil: of a service that cannot be ours
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] == "IP" || words[0] == "Prot" || words[1] == "RemoteAddress:Port" {
			continue
		}
		if words[0] != "->" {
			of = nil
			protocol, ok := map[string]dataplane.Protocol{"TCP": dataplane.TCP, "UDP": dataplane.UDP, "SCTP": dataplane.SCTP}[words[0]]
			if !ok {
				continue // FWM
			}
			a, err := parseAddrPort(words[1])
			if err != nil {
				return nil, fmt.Errorf("reading the IPVS endpoints: %q: %w", strings.TrimSpace(line), err)
			}
			of = map[netip.AddrPort]destination{}
			out[serviceKey{protocol, a}] = of
			continue
		}
		if of == nil {
			continue
		}
		a, d, err := parseDestination(words)
		if err != nil {
			return nil, fmt.Errorf("reading the IPVS endpoints: %q: %w", strings.TrimSpace(line), err)
		}
		of[a] = d
	}
	return out, nil
}

func parseDestination(words []string) (netip.AddrPort, destination, error) {
	if len(words) < 6 {
		return netip.AddrPort{}, destination{}, fmt.Errorf("it has %d words; 6 are known", len(words))
	}
	a, err := parseAddrPort(words[1])
	if err != nil {
		return a, destination{}, err
	}
	var n [3]int
	for i, w := range words[3:6] {
		if n[i], err = strconv.Atoi(w); err != nil {
			return a, destination{}, err
		}
	}
	return a, destination{weight: n[0], connections: n[1] + n[2]}, nil
}

// parseAddrPort reads an address and port in hexadecimal.
func parseAddrPort(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", s)
	}
	port, err := strconv.ParseUint(s[i+1:], 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if text, ok := strings.CutPrefix(s[:i], "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(text, "]"))
		return netip.AddrPortFrom(a, uint16(port)), err
	}
	b, err := hex.DecodeString(s[:i])
	if err != nil || len(b) != 4 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s[:i])
	}
	var four [4]byte
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(b))
	return netip.AddrPortFrom(netip.AddrFrom4(four), uint16(port)), nil
}
