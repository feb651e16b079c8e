package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/switchyard-io/switchyard/lab/netlab"
)

// The one Service.
const (
	serviceName = "web"
	clusterIP   = "10.96.0.10"
	servicePort = 80
	nodePort    = 30080
	targetPort  = 8080 // of the pods
)

// cluster is what an API server would hold, as manifests in a directory.
type cluster struct {
	dir       string
	nodes     []*netlab.Node
	endpoints []endpoint
}

// endpoint is a pod of the Service.
type endpoint struct {
	pod         *netlab.Host
	node        string
	terminating bool
}

func newCluster(dir string, lab *netlab.Lab) *cluster { return &cluster{dir: dir, nodes: lab.Nodes} }

// add makes a pod an endpoint of the Service, as the controller does when it is ready.
func (c *cluster) add(pod *netlab.Host) error {
	for _, n := range c.nodes {
		for _, p := range n.Pods {
			if p == pod {
				c.endpoints = append(c.endpoints, endpoint{pod: pod, node: n.Name})
				return c.writeEndpoints()
			}
		}
	}
	return fmt.Errorf("no node has a pod %s", pod.Name)
}

// terminate marks a pod as one that is about to end.
func (c *cluster) terminate(pod *netlab.Host) error {
	for i := range c.endpoints {
		if c.endpoints[i].pod == pod {
			c.endpoints[i].terminating = true
		}
	}
	return c.writeEndpoints()
}

// remove takes a pod that has ended out of the Service.
func (c *cluster) remove(pod *netlab.Host) error {
	var rest []endpoint
	for _, e := range c.endpoints {
		if e.pod != pod {
			rest = append(rest, e)
		}
	}
	c.endpoints = rest
	return c.writeEndpoints()
}

// create writes the Nodes and the Service, with no endpoints.
func (c *cluster) create() error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return fmt.Errorf("making the manifest directory: %w", err)
	}
	var nodes []any
	for _, n := range c.nodes {
		nodes = append(nodes, nodeObject(n))
	}
	if err := c.write("nodes.yaml", nodes...); err != nil {
		return err
	}
	if err := c.write("service.yaml", serviceObject()); err != nil {
		return err
	}
	return c.writeEndpoints()
}

func (c *cluster) writeEndpoints() error { return c.write("endpoints.yaml", sliceObject(c.endpoints)) }

// write puts a file in place by a rename, so that no agent reads half of it.
func (c *cluster) write(name string, objects ...any) error {
	var docs [][]byte
	for _, o := range objects {
		doc, err := yaml.Marshal(o)
		if err != nil {
			return fmt.Errorf("making the manifest %s: %w", name, err)
		}
		docs = append(docs, doc)
	}
	draft := filepath.Join(c.dir, "."+name)
	if err := os.WriteFile(draft, bytes.Join(docs, []byte("---\n")), 0o644); err != nil {
		return fmt.Errorf("writing the manifest %s: %w", name, err)
	}
	if err := os.Rename(draft, filepath.Join(c.dir, name)); err != nil {
		return fmt.Errorf("writing the manifest %s: %w", name, err)
	}
	return nil
}

func nodeObject(n *netlab.Node) *corev1.Node {
	node := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}},
	}
	for _, a := range n.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	for _, c := range n.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, c.String())
	}
	node.Spec.PodCIDR = strings.Join(node.Spec.PodCIDRs[:1], "")
	return node
}

func serviceObject() *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: serviceName},
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeNodePort,
			ClusterIP: clusterIP,
			Ports:     []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: servicePort, NodePort: nodePort}},
		},
	}
}

func sliceObject(endpoints []endpoint) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: serviceName + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: serviceName},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(targetPort))}},
	}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{e.pod.Addr(4).String()},
			NodeName:   new(e.node),
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: metav1.NamespaceDefault, Name: e.pod.Name},
			Conditions: discoveryv1.EndpointConditions{Ready: new(!e.terminating), Serving: new(true), Terminating: new(e.terminating)},
		})
	}
	return slice
}
