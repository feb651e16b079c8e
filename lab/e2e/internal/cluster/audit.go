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
	"time"
)

//go:embed files/audit.yaml
var auditPolicy []byte

func (l *Lab) auditLog() string { return l.path("log", "audit.json") }

// start is a start of the API server. It answers before it is ready, when it
// may not have read roles and bindings yet and refuses what they allow.
type start struct{ From, Ready time.Time }

func (l *Lab) starts() string { return l.path("log", "apiserver-starts.json") }

// recordStart adds one to those that earlier commands recorded.
func (l *Lab) recordStart(s start) error {
	line, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("recording when the API server was ready: %w", err)
	}
	f, err := os.OpenFile(l.starts(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("recording when the API server was ready: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

func parseStarts(data []byte) ([]start, error) {
	var all []start
	for line := range bytes.Lines(data) {
		var s start
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("reading when the API server was ready: %w", err)
		}
		all = append(all, s)
	}
	return all, nil
}

// Rights compares what the agents asked the API server for with what their
// ClusterRole grants: nothing may have been refused, and no verb be unused. It
// gives what was used.
func (l *Lab) Rights(ctx context.Context) ([]string, error) {
	log, err := os.ReadFile(l.auditLog())
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	role, err := l.Kubectl(ctx, nil, "get", "clusterrole", "switchyard", "-o", "json")
	if err != nil {
		return nil, err
	}
	lines, err := os.ReadFile(l.starts())
	if err != nil {
		return nil, fmt.Errorf("reading when the API server was ready: %w", err)
	}
	starts, err := parseStarts(lines)
	if err != nil {
		return nil, err
	}
	return rights(log, role, starts)
}

func rights(log, role []byte, starts []start) ([]string, error) {
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

			RequestReceivedTimestamp time.Time
		}
		if err := json.Unmarshal(line, &e); err != nil {
			continue // the line that is being written
		}
		early := slices.ContainsFunc(starts, func(s start) bool {
			return e.RequestReceivedTimestamp.After(s.From) && e.RequestReceivedTimestamp.Before(s.Ready)
		})
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
		return nil, fmt.Errorf("reading the agent's ClusterRole: %w", err)
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
		return nil, errors.New("reading the agent's ClusterRole: it grants nothing")
	}
	return all, nil
}

func name(group, resource string) string {
	if group == "" {
		return resource
	}
	return resource + "." + group
}
