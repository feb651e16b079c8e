package pods

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// attribute is one of a netlink message.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// message is a chain as a dump has it.
func message(kind string, hook, rules uint32) []byte {
	body := make([]byte, sizeofNfgenmsg)
	body = append(body, attribute(chainType, append([]byte(kind), 0))...)
	body = append(body, attribute(chainUse, number(rules))...)
	body = append(body, attribute(chainHook|unix.NLA_F_NESTED, attribute(hookNumber, number(hook)))...)
	header := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(header, uint32(len(header)+len(body)))
	binary.NativeEndian.PutUint16(header[4:], newChain)
	return append(header, body...)
}

// scanChains is one datagram of a dump of chains.
func scanChains(data []byte) (found, done bool, err error) {
	done, err = scan(data, outputNAT(&found))
	return found, done, err
}

func TestScanChains(t *testing.T) {
	done := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(done, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint16(done[4:], unix.NLMSG_DONE)
	for name, c := range map[string]struct {
		data        []byte
		found, done bool
	}{
		"nothing yet":                  {nil, false, false},
		"the end":                      {done, false, true},
		"a rule in nat OUTPUT":         {message("nat", localOut, 1), true, true},
		"an empty nat OUTPUT":          {append(message("nat", localOut, 0), done...), false, true},
		"a rule in nat PREROUTING":     {append(message("nat", 0, 7), done...), false, true},
		"a rule in filter OUTPUT":      {append(message("filter", localOut, 7), done...), false, true},
		"a rule in the second chain":   {append(message("filter", localOut, 7), message("nat", localOut, 1)...), true, true},
		"chains without an end so far": {message("filter", localOut, 7), false, false},
	} {
		found, done, err := scanChains(c.data)
		if found != c.found || done != c.done || err != nil {
			t.Errorf("%s: found %t, done %t, %v; want %t, %t", name, found, done, err, c.found, c.done)
		}
	}
}

// Whatever a message holds, it is read without a fault, and to its end.
func TestScanChainsOfNoise(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	good := append(message("nat", localOut, 0), message("filter", localOut, 3)...)
	for range 100_000 {
		data := append([]byte(nil), good[:random.IntN(len(good)+1)]...)
		for range random.IntN(4) {
			if len(data) > 0 {
				data[random.IntN(len(data))] = byte(random.Uint32())
			}
		}
		if found, _, err := scanChains(data); found && err != nil {
			t.Fatalf("%x: a rule is found, and %v", data, err)
		}
	}
}

// Just a file that is not there says that legacy iptables has no table.
func TestLegacyTables(t *testing.T) {
	for name, c := range map[string]struct {
		make   func(file string) error // nil: there is no such file
		tables [2]bool
		fails  bool
	}{
		"a kernel without legacy iptables": {nil, [2]bool{}, false},
		"a table":                          {func(f string) error { return os.WriteFile(f, []byte("filter\nnat\n"), 0o600) }, [2]bool{false, true}, false},
		"other tables":                     {func(f string) error { return os.WriteFile(f, []byte("filter\n"), 0o600) }, [2]bool{}, false},
		"a file that cannot be read":       {func(f string) error { return os.Mkdir(f, 0o700) }, [2]bool{}, true},
	} {
		process := t.TempDir()
		if err := os.Mkdir(filepath.Join(process, "net"), 0o700); err != nil {
			t.Fatal(err)
		}
		if c.make != nil {
			if err := c.make(filepath.Join(process, "net", "ip6_tables_names")); err != nil {
				t.Fatal(err)
			}
		}
		tables, err := legacyTables(process)
		if tables != c.tables || (err != nil) != c.fails {
			t.Errorf("%s: tables %t, %v; want %t, an error %t", name, tables, err, c.tables, c.fails)
		}
		if _, err := legacyTranslates(process); c.fails && err == nil {
			t.Errorf("%s: the namespace counts as looked into", name)
		}
	}
}

// A namespace whose legacy tables cannot be read is left to packets.
func TestUnreadableTablesLeaveANamespaceToPackets(t *testing.T) {
	w := &Watcher{}
	s := &space{}
	if s.why() != "" {
		t.Fatalf("it is left to packets from the start: %s", s.why())
	}
	w.foundLegacy(s, false, os.ErrPermission)
	if s.why() != unseen {
		t.Errorf("it is left to packets by %q, want %q", s.why(), unseen)
	}
}
