package cluster

import (
	"strings"
	"testing"
)

func TestRights(t *testing.T) {
	const role = `{"rules": [{"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
		{"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}]}`
	line := func(verb, group, resource, code string) string {
		return `{"verb": "` + verb + `", "requestURI": "/x", "objectRef": {"apiGroup": "` + group + `", "resource": "` + resource +
			`"}, "responseStatus": {"code": ` + code + "}}\n"
	}
	list, watch := line("list", "", "services", "200"), line("watch", "", "services", "200")
	create := line("create", "events.k8s.io", "events", "201")
	at := func(when string) string { // a refusal
		return strings.Replace(line("watch", "", "nodes", "403"), "}\n", `, "requestReceivedTimestamp": "`+when+`"}`+"\n", 1)
	}
	starts, err := parseStarts([]byte(`{"From": "2026-01-02T03:04:05Z", "Ready": "2026-01-02T03:04:06Z"}` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ log, says string }{
		"all used, none refused":           {list + watch + create, ""},
		"half a line at the end":           {list + watch + create + `{"verb": "li`, ""},
		"one is never used":                {watch + create, "granted and never used: list services"},
		"one is refused":                   {list + watch + create + line("get", "", "secrets", "403"), "refused with 403: get /x"},
		"the API server was not ready yet": {list + watch + create + at("2026-01-02T03:04:05.5Z"), ""},
		"it was refused before the start":  {list + watch + create + at("2026-01-02T03:04:04Z"), "refused with 403: watch /x"},
		"it was refused once it was ready": {list + watch + create + at("2026-01-02T03:04:07Z"), "refused with 403: watch /x"},
		"one is refused after a very long line": {list + watch + create + strings.Replace(list, "/x", "/"+strings.Repeat("x", 1<<17), 1) +
			line("get", "", "secrets", "403"), "refused with 403: get /x"},
		"nothing was asked": {"", "granted and never used"},
	} {
		_, err := rights([]byte(c.log), []byte(role), starts)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	if _, err := rights(nil, []byte(`{}`), nil); err == nil {
		t.Error("a role without rights is no error")
	}
}
