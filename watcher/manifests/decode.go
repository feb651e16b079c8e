package manifests

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/switchyard-io/switchyard/watcher/facts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Fault is what is wrong with one object of one file.
type Fault struct {
	File   string
	Object string // "Service shop/web"; "document 2" where it does not even say what it is
	Err    error  // names the field, its value and what is allowed
}

func (f *Fault) Error() string { return fmt.Sprintf("%s: %s: %v", f.File, f.Object, f.Err) }

// Unwrap gives the reason.
func (f *Fault) Unwrap() error { return f.Err }

// maxDepth is how deep a List may be inside a List.
const maxDepth = 4

// object is what one manifest comes to. Of the pointers at most one is set:
// objects that the proxy has nothing to do with have a name only.
type object struct {
	kind    string
	name    facts.Name
	service *facts.Service
	slice   *facts.Slice
	node    *facts.Node
	cidr    *facts.ServiceCIDR
}

func (o object) String() string { return o.kind + " " + o.name.String() }

// decode reads all objects of a file. It finds as many faults as there are: the
// error joins one Fault for each.
func decode(file string, data []byte, node string) ([]object, error) {
	d := decoder{file: file, node: node}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		at := fmt.Sprintf("document %d", n)
		if err != nil {
			d.fault(at, err)
			break
		}
		if doc, err = toJSON(doc); err != nil {
			d.fault(at, err)
			continue
		}
		if doc = bytes.TrimSpace(doc); len(doc) > 0 && !bytes.Equal(doc, []byte("null")) {
			d.object(at, doc, metav1.TypeMeta{}, 0)
		}
	}
	return d.objects, errors.Join(d.faults...)
}

// toJSON makes JSON of a YAML document and leaves JSON as it is: YAML knows no
// tabs before a value, JSON does.
func toJSON(doc []byte) ([]byte, error) {
	if bytes.HasPrefix(bytes.TrimSpace(doc), []byte("{")) && json.Valid(doc) {
		return doc, nil
	}
	return yaml.YAMLToJSONStrict(doc)
}

type decoder struct {
	file, node string
	objects    []object
	faults     []error
}

func (d *decoder) fault(object string, err error) {
	d.faults = append(d.faults, &Fault{File: d.file, Object: object, Err: err})
}

// object decodes one object, or each of a List. outer is the type that items of
// a typed List need not repeat.
func (d *decoder) object(at string, doc []byte, outer metav1.TypeMeta, depth int) {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(doc, &head); err != nil {
		d.fault(at, typeFault(doc, err))
		return
	}
	if head.TypeMeta == (metav1.TypeMeta{}) {
		head.TypeMeta = outer
	}
	name := facts.Name{Namespace: head.Metadata.Namespace, Name: head.Metadata.Name}
	known, ok := kinds()[head.TypeMeta]
	switch {
	case ok:
		if known.namespaced && name.Namespace == "" {
			name.Namespace = metav1.NamespaceDefault
		}
		o := object{kind: head.Kind, name: name}
		if head.Metadata.Name != "" {
			at = o.String()
		} else {
			at += " (" + head.Kind + ")"
		}
		if err := known.decode(d, doc, &o); err != nil {
			d.fault(at, err)
			return
		}
		d.objects = append(d.objects, o)
	case strings.HasSuffix(head.Kind, "List") && depth < maxDepth:
		d.list(at, doc, head.TypeMeta, depth)
	default:
		if head.Kind != "" {
			at = strings.TrimSpace(head.Kind + " " + name.String())
		}
		d.fault(at, fmt.Errorf("apiVersion %q, kind %q: allowed are v1 Service, v1 Node, discovery.k8s.io/v1 EndpointSlice, "+
			"networking.k8s.io/v1 ServiceCIDR, and Lists of them", head.APIVersion, head.Kind))
	}
}

func (d *decoder) list(at string, doc []byte, list metav1.TypeMeta, depth int) {
	var items struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta   `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := strict(doc, &items); err != nil {
		d.fault(at+" ("+list.Kind+")", err)
		return
	}
	var item metav1.TypeMeta
	if kind := strings.TrimSuffix(list.Kind, "List"); kind != "" {
		item = metav1.TypeMeta{APIVersion: list.APIVersion, Kind: kind}
	}
	for i, raw := range items.Items {
		d.object(fmt.Sprintf("%s, items[%d]", at, i), raw, item, depth+1)
	}
}

// kind is how to read one kind of object.
type kind struct {
	namespaced bool
	decode     func(d *decoder, doc []byte, o *object) error
}

func kinds() map[metav1.TypeMeta]kind {
	return map[metav1.TypeMeta]kind{
		{APIVersion: "v1", Kind: "Service"}:                        {true, decodeService},
		{APIVersion: "v1", Kind: "Node"}:                           {false, decodeNode},
		{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}: {true, decodeSlice},
		{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"}:  {false, decodeServiceCIDR},
	}
}

func decodeService(_ *decoder, doc []byte, o *object) error {
	var s corev1.Service
	if err := strict(doc, &s); err != nil {
		return err
	}
	defaultService(&s)
	if err := validateService(&s).ToAggregate(); err != nil {
		return err
	}
	var problems []error
	o.service, problems = facts.FromService(&s)
	return errors.Join(problems...)
}

func decodeSlice(d *decoder, doc []byte, o *object) error {
	var s discoveryv1.EndpointSlice
	if err := strict(doc, &s); err != nil {
		return err
	}
	defaultSlice(&s)
	if err := validateSlice(&s).ToAggregate(); err != nil {
		return err
	}
	var problems []error
	o.slice, problems = facts.FromSlice(&s, d.node)
	return errors.Join(problems...)
}

func decodeNode(d *decoder, doc []byte, o *object) error {
	var n corev1.Node
	if err := strict(doc, &n); err != nil {
		return err
	}
	if err := validateNode(&n).ToAggregate(); err != nil {
		return err
	}
	if n.Name != d.node {
		return nil // another node's affair
	}
	var problems []error
	o.node, problems = facts.FromNode(&n)
	return errors.Join(problems...)
}

func decodeServiceCIDR(_ *decoder, doc []byte, o *object) error {
	var c networkingv1.ServiceCIDR
	if err := strict(doc, &c); err != nil {
		return err
	}
	if err := validateServiceCIDR(&c).ToAggregate(); err != nil {
		return err
	}
	var problems []error
	o.cidr, problems = facts.FromServiceCIDR(&c)
	return errors.Join(problems...)
}
