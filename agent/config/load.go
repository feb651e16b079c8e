package config

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// documents says which of the two a Config was read from.
type documents struct{ kubeProxy, own bool }

// load reads the documents of a file into c. Fields that it does not mention
// stay as they are.
func (c *Config) load(file string, have *documents) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	c.Files = append(c.Files, file)
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	found := false
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && len(bytes.TrimSpace(stripComments(doc))) == 0 {
			continue
		}
		if err == nil {
			found = true
			err = c.document(file, doc, have)
		}
		if err != nil {
			return fmt.Errorf("%s: document %d: %w", file, n, err)
		}
	}
	if !found {
		return fmt.Errorf("%s: there is no document; it must have a %s or a %s", file, kubeProxyKind, ownKind)
	}
	return nil
}

// stripComments takes away lines that are comments or separators only.
func stripComments(doc []byte) []byte {
	var out []byte
	for line := range bytes.Lines(doc) {
		t := bytes.TrimSpace(line)
		if !bytes.HasPrefix(t, []byte("#")) && !bytes.Equal(t, []byte("---")) {
			out = append(out, line...)
		}
	}
	return out
}

// document reads one document.
func (c *Config) document(file string, doc []byte, have *documents) error {
	var t metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &t); err != nil {
		return err
	}
	switch {
	case t.APIVersion == kubeProxyVersion && t.Kind == kubeProxyKind:
		if have.kubeProxy {
			return fmt.Errorf("a second %s; there can be one", kubeProxyKind)
		}
		have.kubeProxy = true
		strict, err := decode(doc, &c.KubeProxy)
		// kube-proxy's way with what it does not know: a warning, and on (§2.1).
		for _, s := range strict {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: %v; the rest of the document is read", file, s))
		}
		return err
	case t.APIVersion == ownVersion && t.Kind == ownKind:
		if have.own {
			return fmt.Errorf("a second %s; there can be one", ownKind)
		}
		have.own = true
		strict, err := decode(doc, &c.Switchyard)
		return errors.Join(append(strict, err)...)
	}
	return fmt.Errorf("it is apiVersion %q, kind %q; it can be %s, %s or %s, %s",
		t.APIVersion, t.Kind, kubeProxyVersion, kubeProxyKind, ownVersion, ownKind)
}

// decode reads YAML or JSON. strict are unknown and repeated fields; the rest of
// the document is read all the same.
func decode(doc []byte, into any) (strict []error, err error) {
	j, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		repeated := err
		if j, err = yaml.YAMLToJSON(doc); err != nil {
			return nil, err
		}
		strict = append(strict, repeated)
	}
	more, err := kjson.UnmarshalStrict(j, into, kjson.DisallowUnknownFields, kjson.DisallowDuplicateFields)
	return append(strict, more...), err
}
