package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

//go:embed files/audit.yaml
var auditPolicy []byte

func (l *Lab) auditLog() string { return l.path("log", "audit.json") }

// Rights compares what the agents asked the API server for with what their
// ClusterRole grants: nothing may have been refused, and no verb be unused. It
// gives what was used.
func (l *Lab) Rights(ctx context.Context) ([]string, error) {
	log, err := os.ReadFile(l.auditLog())
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	role, err := l.Kubectl(ctx, nil, "get", "clusterrole", "switchyard", "-o", "json")
	if err != nil {
		return nil, err
	}
	return rights(log, role)
}

func rights(log, role []byte) ([]string, error) {
	granted, err := parseRole(role)
	if err != nil {
		return nil, err
	}
	used, errs := map[string]bool{}, []error{}
	for line := range bytes.Lines(log) { // of any length
		var e struct {
			Verb, RequestURI string
			ObjectRef        struct{ APIGroup, Resource string }
			ResponseStatus   struct{ Code int }
			Annotations      map[string]string
		}
		if err := json.Unmarshal(line, &e); err != nil {
			continue // the line that is being written
		}
		// An API server that starts answers before it has read the roles.
		early := strings.Contains(e.Annotations["authorization.k8s.io/reason"], `"switchyard" not found`)
		if c := e.ResponseStatus.Code; (c == 401 || c == 403) && !early {
			errs = append(errs, fmt.Errorf("refused with %d: %s %s", c, e.Verb, e.RequestURI))
		}
		used[e.Verb+" "+name(e.ObjectRef.APIGroup, e.ObjectRef.Resource)] = true
	}
	for right := range granted {
		if !used[right] {
			errs = append(errs, errors.New("granted and never used: "+right))
		}
	}
	return slices.Sorted(maps.Keys(used)), errors.Join(errs...)
}

// parseRole gives a ClusterRole's rights, one verb and resource each.
func parseRole(data []byte) (map[string]bool, error) {
	var role struct {
		Rules []struct{ APIGroups, Resources, Verbs []string }
	}
	if err := json.Unmarshal(data, &role); err != nil {
		return nil, fmt.Errorf("read the agent's ClusterRole: %w", err)
	}
	all := map[string]bool{}
	for _, r := range role.Rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					all[verb+" "+name(group, resource)] = true
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("read the agent's ClusterRole: it grants nothing")
	}
	return all, nil
}

func name(group, resource string) string {
	if group == "" {
		return resource
	}
	return resource + "." + group
}
