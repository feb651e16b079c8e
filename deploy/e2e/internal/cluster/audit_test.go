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
	for name, c := range map[string]struct{ log, says string }{
		"all used, none refused": {list + watch + create, ""},
		"half a line at the end": {list + watch + create + `{"verb": "li`, ""},
		"one is never used":      {watch + create, "granted and never used: list services"},
		"one is refused":         {list + watch + create + line("get", "", "secrets", "403"), "refused with 403: get /x"},
		"the API server had not read its roles": {list + watch + create + strings.Replace(line("watch", "", "nodes", "403"), "}\n",
			`, "annotations": {"authorization.k8s.io/reason": "RBAC: clusterrole.rbac.authorization.k8s.io \"switchyard\" not found"}}`+"\n", 1), ""},
		"one is refused after a very long line": {list + watch + create + strings.Replace(list, "/x", "/"+strings.Repeat("x", 1<<17), 1) +
			line("get", "", "secrets", "403"), "refused with 403: get /x"},
		"nothing was asked": {"", "granted and never used"},
	} {
		_, err := rights([]byte(c.log), []byte(role))
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	if _, err := rights(nil, []byte(`{}`)); err == nil {
		t.Error("a role without rights is no error")
	}
}
