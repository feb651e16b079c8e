package kube

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	serializerproto "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"
)

func testScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s
}

// inProtobuf returns an object as an API server sends it.
func inProtobuf(t *testing.T, o runtime.Object) string {
	t.Helper()
	s := testScheme(t)
	var out bytes.Buffer
	if err := serializerproto.NewSerializer(s, s).Encode(o, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func inJSON(t *testing.T, o runtime.Object) string {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func services(names ...string) *corev1.ServiceList {
	l := &corev1.ServiceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: "on"}}
	for _, n := range names {
		l.Items = append(l.Items, corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: n, Annotations: map[string]string{"long": strings.Repeat(n, 1000)}}})
	}
	return l
}

// read reads an answer with status 200 as a list, and returns the names in it.
func read(t *testing.T, answer string) (meta metav1.ListInterface, names []string, err error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
	defer server.Close()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	l := lister{decoder: serializer.NewCodecFactory(testScheme(t)).UniversalDeserializer(), item: func(text []byte) (runtime.Object, error) {
		o := &corev1.Service{}
		return o, o.Unmarshal(text)
	}}
	o, err := l.list(t.Context(), rest.NewRequestWithClient(base, "", rest.ClientContentConfig{}, server.Client()).Verb("GET"))
	switch o := o.(type) {
	case *list:
		for _, item := range o.Items {
			names = append(names, item.(*corev1.Service).Name)
		}
		return o, names, err
	case *corev1.ServiceList:
		for _, item := range o.Items {
			names = append(names, item.Name)
		}
		return o, names, err
	}
	return nil, nil, err
}

func TestList(t *testing.T) {
	refused := &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Message: "no"}
	// Fields that nobody knows yet, of each wire type, before the list and after it.
	unknown := "\x28\x01" + "\x31--------" + "\x3d----" + "\x42\x03abc"
	odd := protobufMagic + unknown + inProtobuf(t, services("web"))[len(protobufMagic):] + unknown
	for _, c := range []struct {
		name, answer string
		want         []string
		wrong        string // in the error
	}{
		{"protobuf", inProtobuf(t, services("web", "db", "mail")), []string{"web", "db", "mail"}, ""},
		{"protobuf, nothing in it", inProtobuf(t, services()), nil, ""},
		{"JSON", inJSON(t, services("web", "db")), []string{"web", "db"}, ""},
		{"fields of a newer API", odd, []string{"web"}, ""},
		{"nothing", "", nil, "reading a list"},
		{"nothing in protobuf", protobufMagic, nil, "there is none"},
		{"no list", inProtobuf(t, &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}), nil, `unexpected "Service"`},
		{"no list, in JSON", inJSON(t, &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}), nil, "unexpected *v1.Service"},
		{"a refusal", inJSON(t, refused), nil, "no"},
		{"a field longer than the message", protobufMagic + "\x0a\x02\x0a\x7f", nil, "unexpected EOF"},
		{"a field longer than any", protobufMagic + "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", nil, "longer than what it is in"},
		{"an end in the middle of a number", protobufMagic + "\x0a\xff", nil, "unexpected EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			meta, names, err := read(t, c.answer)
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Fatalf("%v; want an error with %q", err, c.wrong)
				}
				return
			}
			if err != nil || !slices.Equal(names, c.want) || meta.GetResourceVersion() != "7" || meta.GetContinue() != "on" {
				t.Errorf("%q, %v; want %q", names, err, c.want)
			}
		})
	}
}

// TestListCutShort: no beginning of a list is taken for the list.
func TestListCutShort(t *testing.T) {
	whole := inProtobuf(t, services("a", "b"))
	l := lister{item: func([]byte) (runtime.Object, error) { return &list{}, nil }}
	for n := len(protobufMagic); n < len(whole); n++ {
		// The list is followed by two empty fields of its envelope.
		if o, err := l.protobuf(bufio.NewReader(strings.NewReader(whole[:n]))); err == nil && len(o.(*list).Items) != 2 {
			t.Fatalf("the first %d of %d bytes: taken for a list", n, len(whole))
		}
	}
}
