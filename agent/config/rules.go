package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-io/switchyard/watcher/facts"
)

// rule returns what is allowed if a value is not, and "" if it is.
type rule func(value any) string

// unless returns what is allowed if a value is not.
func unless(ok bool, allowed string) string {
	if ok {
		return ""
	}
	return allowed
}

// orEmpty allows an empty text in addition to what r allows.
func orEmpty(r rule) rule {
	return func(v any) string {
		if v == "" {
			return ""
		}
		return r(v)
	}
}

// oneOf allows the words of a list such as "auto, nft or legacy".
func oneOf(list string) rule {
	words := strings.Split(strings.ReplaceAll(list, " or ", ", "), ", ")
	return func(v any) string { return unless(slices.Contains(words, v.(string)), "it can be "+list) }
}

func number(v any) int64 { return reflect.ValueOf(v).Int() }

func between(least, most int64) rule {
	return func(v any) string {
		return unless(least <= number(v) && number(v) <= most, fmt.Sprintf("it can be %d to %d", least, most))
	}
}

func notNegative(v any) string { return unless(number(v) >= 0, "it must not be less than 0") }

func positive(v any) string { return unless(number(v) > 0, "it must be more than 0") }

func wholeSeconds(v any) string {
	if negative := notNegative(v); negative != "" {
		return negative
	}
	return unless(v.(time.Duration)%time.Second == 0, "it must be whole seconds")
}

func address(v any) string {
	_, ok := facts.ParseAddr(v.(string))
	return unless(ok, "it must be an IP address")
}

func addressPort(v any) string {
	_, err := netip.ParseAddrPort(v.(string))
	return unless(err == nil, "it must be an IP address and a port, as in 127.0.0.1:10249")
}

func addressRange(v any) string {
	_, err := netip.ParsePrefix(v.(string))
	return unless(err == nil, "it must be an address range such as 10.96.0.0/16")
}

func clusterRanges(v any) string {
	ranges, ok := parseClusterCIDR(v.(string))
	return unless(ok && len(ranges) <= 2,
		"it must be an address range such as 10.244.0.0/16, or one for each family with a comma between")
}

// parseClusterCIDR reads the ranges of clusterCIDR.
func parseClusterCIDR(text string) (ranges []netip.Prefix, ok bool) {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, ok := facts.ParsePrefix(word)
		if !ok {
			return nil, false
		}
		ranges = append(ranges, p)
	}
	return ranges, true
}

func hostPort(v any) string {
	host, port, err := net.SplitHostPort(v.(string))
	n, parsing := strconv.ParseUint(port, 10, 16)
	return unless(err == nil && host != "" && parsing == nil && n > 0,
		"it must be a host and a port, such as 192.0.2.1:6443 or [2001:db8::1]:6443")
}

func directory(v any) string {
	info, err := os.Stat(v.(string))
	return unless(err == nil && info.IsDir(), "it must be a directory that is there")
}
