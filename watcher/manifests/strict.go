package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// strict decodes as an API server does with strict field validation: names of
// fields count upper and lower case, unknown and repeated ones are errors.
func strict(doc []byte, into any) error {
	more, err := kjson.UnmarshalStrict(doc, into, kjson.DisallowUnknownFields, kjson.DisallowDuplicateFields)
	if err == nil {
		return errors.Join(more...)
	}
	// The strict decoder keeps the type of its error to itself; the standard
	// one fails at the same value and tells.
	if plain := json.Unmarshal(doc, into); plain != nil {
		err = plain
	}
	return typeFault(doc, err)
}

// typeFault puts what the decoder says of a value's type into the form of the
// other faults: field, value, what is allowed.
func typeFault(doc []byte, err error) error {
	var t *json.UnmarshalTypeError
	if !errors.As(err, &t) || t.Field == "" {
		return err
	}
	var all any
	if json.Unmarshal(doc, &all) != nil {
		return err
	}
	path, value := t.Field, any(t.Value)
	kind, _, _ := strings.Cut(t.Value, " ") // "number 1.5": the value is told too
	if p, v, ok := locate(all, strings.Split(t.Field, "."), kind); ok {
		path, value = strings.TrimPrefix(p, "."), v
	}
	return field.TypeInvalid(field.NewPath(path), value, "allowed is "+typeName(t.Type))
}

// locate finds the value of a JSON kind at a path that has no indices, in lists
// the first such. The path that it gives has them.
func locate(v any, path []string, kind string) (string, any, bool) {
	if len(path) == 0 && jsonKind(v) == kind {
		return "", v, true
	}
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if p, found, ok := locate(e, path, kind); ok {
				return fmt.Sprintf("[%d]%s", i, p), found, true
			}
		}
	case map[string]any:
		if len(path) > 0 {
			p, found, ok := locate(v[path[0]], path[1:], kind)
			return "." + path[0] + p, found, ok
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if jsonKind(v[key]) == kind {
				return "[" + key + "]", v[key], true
			}
		}
	}
	return "", nil, false
}

func jsonKind(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return "null"
}

// typeName says in plain words what a Go type takes.
func typeName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	case reflect.Map:
		return "a map"
	}
	return "an object"
}
