package build

import (
	"path/filepath"
	"slices"
	"testing"
)

// The pinned module has to name every program that the lab starts.
func TestKubernetesModule(t *testing.T) {
	m, err := readModule(t.Context(), filepath.Join("..", "..", "kubernetes"))
	if err != nil {
		t.Fatal(err)
	}
	if m.version == "" {
		t.Error("no version of Kubernetes")
	}
	for _, want := range []string{
		"k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-controller-manager",
		"k8s.io/kubernetes/cmd/kube-proxy", "k8s.io/kubernetes/cmd/kube-scheduler",
		"k8s.io/kubernetes/cmd/kubectl", "k8s.io/kubernetes/cmd/kubelet",
		"k8s.io/kubernetes/test/images/agnhost",
	} {
		if !slices.Contains(m.programs, want) {
			t.Errorf("%s is not built", want)
		}
	}
}

func TestParseModule(t *testing.T) {
	cases := map[string]struct {
		data string
		bad  bool
	}{
		"complete":    {data: `{"Require":[{"Path":"k8s.io/kubernetes","Version":"v1.2.3"}],"Tool":[{"Path":"a/b"}]}`},
		"no version":  {data: `{"Require":[],"Tool":[{"Path":"a/b"}]}`, bad: true},
		"no programs": {data: `{"Require":[{"Path":"k8s.io/kubernetes","Version":"v1.2.3"}]}`, bad: true},
		"not JSON":    {data: `module x`, bad: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m, err := parseModule([]byte(c.data))
			if (err != nil) != c.bad {
				t.Fatalf("error %v, want one: %v", err, c.bad)
			}
			if err == nil && (m.version != "v1.2.3" || !slices.Equal(m.programs, []string{"a/b"})) {
				t.Errorf("got %+v", m)
			}
		})
	}
}

// A change of any input has to lead to a new build.
func TestStamp(t *testing.T) {
	dir := filepath.Join("..", "..", "kubernetes")
	a, err := stamp(t.Context(), dir, []string{"-trimpath"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := stamp(t.Context(), dir, []string{"-trimpath"}); err != nil || a != b {
		t.Errorf("the same inputs give %s and %s (%v)", a, b, err)
	}
	if b, err := stamp(t.Context(), dir, []string{"-race"}); err != nil || a == b {
		t.Errorf("other flags give the same stamp (%v)", err)
	}
}
