package control

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// clients makes the clients of the two groups that are used: the clientset of
// the whole API takes minutes to compile.
func (p *Plane) clients() error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("registering the API's types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	for _, g := range []struct {
		client  *rest.Interface
		version schema.GroupVersion
		path    string
	}{
		{&p.core, corev1.SchemeGroupVersion, "/api"},
		{&p.discovery, discoveryv1.SchemeGroupVersion, "/apis"},
	} {
		c := p.config()
		c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &g.version, g.path, codecs
		client, err := rest.RESTClientFor(c)
		if err != nil {
			return fmt.Errorf("making a client of the API: %w", err)
		}
		*g.client = client
	}
	return nil
}

// config is how this process reaches the API server: from beside it.
func (p *Plane) config() *rest.Config {
	const protobuf = "application/vnd.kubernetes.protobuf"
	return &rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", apiPort), BearerToken: p.token,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, // nothing else is in that namespace
		ContentConfig:   rest.ContentConfig{ContentType: protobuf, AcceptContentTypes: protobuf + "," + runtime.ContentTypeJSON},
		QPS:             -1,
		Dial:            p.dial,
	}
}
