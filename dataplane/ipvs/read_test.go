package ipvs

import (
	"fmt"
	"testing"
)

// TestParseTable: /proc/net/ip_vs as kernels print it.
func TestParseTable(t *testing.T) {
	const text = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:0050 rr 
  -> 0AF40105:1F90      Masq    1      2          3         
  -> 0AF40106:1F90      Masq    0      0          0         
FWM  0000000A wlc 
  -> 0AF40107:1F90      Masq    1      0          0         
UDP  [fd96:0000:0000:0000:0000:0000:0000:000a]:0035 wlc persistent 300 00000080
  -> [fd00:0000:0000:0000:0000:0000:0000:0005]:0035      Masq    1      0          0         
SCTP 0A600001:0051 mh
`
	got, err := parseTable(text)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"the IPVS service TCP 10.96.0.1:80":  "map[10.244.1.5:8080:{1 5} 10.244.1.6:8080:{0 0}]",
		"the IPVS service UDP [fd96::a]:53":  "map[[fd00::5]:53:{1 0}]",
		"the IPVS service SCTP 10.96.0.1:81": "map[]",
	}
	for key, destinations := range got {
		if text := fmt.Sprint(destinations); text != want[key.String()] {
			t.Errorf("%s has %s, wanted %s", key, text, want[key.String()])
		}
		delete(want, key.String())
	}
	for key := range want {
		t.Errorf("%s is missing", key)
	}
	for _, wrong := range []string{
		"TCP  0A60:0050 rr\n", "TCP  0A600001 rr x\n", "TCP  0A600001:0050 rr\n  -> 0AF40105:1F90 Masq 1 2\n", "TCP  0A600001:0050 rr\n  -> 0AF40105:1F90 Masq a 2 3\n",
	} {
		if _, err := parseTable(wrong); err == nil {
			t.Errorf("%q: no error", wrong)
		}
	}
}
