package cluster

import (
	"bytes"
	"strings"
	"testing"
)

// TestTable has what each of many proxies costs found again in the tables.
func TestTable(t *testing.T) {
	r := &Report{Services: 1000, Endpoints: 10, Cores: 16, Kinds: []string{Switchyard, KubeProxy}}
	for _, l := range grid() {
		for _, kind := range r.Kinds {
			if l.Agents == 0 {
				kind = ""
			}
			r.Windows = append(r.Windows, Window{Kind: kind, Agents: int(l.Agents), Changes: l.Changes, CPU: 0.1 + 1e-5*l.Agents*l.Changes, Sent: 1000 * l.Agents * l.Changes})
			r.Storms = append(r.Storms, Storm{Kind: kind, Agents: int(l.Agents), What: Restart, CPU: 2 + 0.01*l.Agents, Sent: 1e6 * l.Agents, Peak: 3e8 + 1e6*l.Agents})
		}
	}
	r.fit()
	var out bytes.Buffer
	if err := Table(&out, r); err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		rows[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, want := range []string{
		"200 × switchyard 20.0 0.140 4.000 0.000 0.00",                   // as measured
		"switchyard 15000 100 15.10 0.00 1500.0 0.0 120 % 15,900 12,500", // 1 KB for each change and agent
		"switchyard restart 15000 152 0 15.0 0.0 12.0 15.3 ± 0.0",
		"kube-proxy restart 5000 52 0 5.0 0.0 4.0 5.3 ± 0.0",
	} {
		if !rows[want] {
			t.Errorf("no row %q in\n%s", want, out.String())
		}
	}
}
