// Package network makes the lab's network out of namespaces.
//
// A hub namespace holds one bridge; every other namespace has one interface,
// eth0, whose far end is a port of that bridge. Nothing of it is visible in the
// machine's own namespace: no address, no route, no firewall rule.
package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

const (
	bridgeName = "br0"
	uplinkName = "eth0"
	mtu        = 1500
)

// Hub is the namespace in the middle.
type Hub struct {
	Namespace string
	Addrs     []netip.Prefix // of the bridge
	Routes    []Route
}

// Leaf is a namespace that is attached to the hub.
type Leaf struct {
	Namespace string
	Port      string         // the bridge port's name, at most 15 bytes
	Addrs     []netip.Prefix // of eth0
	Routes    []Route
	Forward   bool // passes on packets for others, as a node does for its pods
}

// Route sends what is for To to the neighbour Via.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Path is the file that stands for a named namespace.
func Path(namespace string) string { return filepath.Join("/run/netns", namespace) }

// CreateHub makes the hub. It is an error if the namespace exists.
func CreateHub(h Hub) error {
	if err := create(h.Namespace); err != nil {
		return err
	}
	err := Do(Path(h.Namespace), func() error {
		link := &netlink.Bridge{LinkAttrs: attrs(bridgeName)}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("adding bridge %s: %w", bridgeName, err)
		}
		if err := settle(true); err != nil {
			return err
		}
		return configure(bridgeName, h.Addrs, h.Routes)
	})
	if err != nil {
		return fmt.Errorf("creating namespace %s: %w", h.Namespace, err)
	}
	return nil
}

// CreateLeaf makes a namespace and plugs it into hub. It is an error if it exists.
func CreateLeaf(hub string, l Leaf) error {
	if err := create(l.Namespace); err != nil {
		return err
	}
	if err := plug(hub, l); err != nil {
		return fmt.Errorf("creating namespace %s: %w", l.Namespace, err)
	}
	return nil
}

func plug(hub string, l Leaf) error {
	far, err := netns.GetFromName(l.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = far.Close() }()
	err = Do(Path(hub), func() error {
		veth := &netlink.Veth{
			LinkAttrs: attrs(l.Port), PeerName: uplinkName,
			PeerNamespace: netlink.NsFd(far), PeerMTU: mtu,
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding link %s: %w", l.Port, err)
		}
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("finding bridge %s: %w", bridgeName, err)
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return fmt.Errorf("plugging link %s into %s: %w", l.Port, bridgeName, err)
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	return Do(Path(l.Namespace), func() error {
		if err := settle(l.Forward); err != nil {
			return err
		}
		return configure(uplinkName, l.Addrs, l.Routes)
	})
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, mtu
	return a
}

// settle gives the namespace that the thread is in what a machine has after boot.
func settle(forward bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting the loopback interface up: %w", err)
	}
	set := map[string]string{
		// Duplicate address detection keeps a new IPv6 address useless for a second.
		"net/ipv6/conf/all/accept_dad":     "0",
		"net/ipv6/conf/default/accept_dad": "0",
	}
	if forward {
		set["net/ipv4/ip_forward"] = "1"
		set["net/ipv6/conf/all/forwarding"] = "1"
	}
	for name, value := range set {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("setting sysctl %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
		}
	}
	return nil
}

func configure(name string, addrs []netip.Prefix, routes []Route) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("adding address %s to %s: %w", p, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting link %s up: %w", name, err)
	}
	for _, r := range routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.To), Gw: r.Via.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("adding route to %s via %s: %w", r.To, r.Via, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// create makes a named namespace and leaves this thread where it was.
func create(name string) error {
	if _, err := os.Stat(Path(name)); err == nil {
		return fmt.Errorf("creating namespace %s: %w", name, fs.ErrExist)
	}
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	defer func() { _ = home.Close() }()
	if err := netlab.ShareNames(); err != nil {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return onThread(home, func() error {
		ns, err := netns.NewNamed(name) // moves the thread into it
		if err != nil {
			return fmt.Errorf("creating namespace %s: %w", name, err)
		}
		return ns.Close()
	})
}

// Delete removes a namespace with all that is in it. It is no error where it
// does not exist.
func Delete(name string) error {
	if _, err := os.Stat(Path(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := netns.DeleteNamed(name); err != nil {
		return fmt.Errorf("deleting namespace %s: %w", name, err)
	}
	return nil
}

// Do calls do in the namespace that the file path stands for. Sockets that do
// opens and processes that it starts belong to that namespace; goroutines that
// it starts do not.
func Do(path string, do func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("entering namespace %s: %w", path, err)
	}
	defer func() { _ = ns.Close() }()
	return onThread(ns, do)
}

// onThread calls do on a thread that is given up afterwards, so that no other
// goroutine ever runs in the namespace by accident.
func onThread(ns netns.NsHandle, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("entering namespace: %w", err)
			return
		}
		done <- do()
	}()
	return <-done
}
