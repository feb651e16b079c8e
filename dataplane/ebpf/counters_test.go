package ebpf

import (
	"os"
	"regexp"
	"testing"
)

// TestEveryCounterHasAWord: in the order of bpf/stats.h.
func TestEveryCounterHasAWord(t *testing.T) {
	text, err := os.ReadFile("../../bpf/stats.h")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^\tSTAT_([A-Z_]+), `).FindAllStringSubmatch(string(text), -1)
	words := stats()
	if len(names) != len(words) {
		t.Fatalf("bpf/stats.h has %d counters, stats() %d", len(names), len(words))
	}
	for i, n := range names {
		dropped := regexp.MustCompile(`STAT_` + n[1] + `,[^\n]*(: dropped \*/|policy drops|outside the Service's|that no Service has|updates overtook)`).MatchString(string(text))
		if dropped != (words[i].metric == "switchyard_dropped_total") {
			t.Errorf("%s is told as %s{%s=%q}", n[1], words[i].metric, words[i].label, words[i].value)
		}
	}
}
