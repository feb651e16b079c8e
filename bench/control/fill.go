package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// txnServices is how many Services one transaction of etcd holds: three objects
// each, and etcd is told to take that many.
const (
	txnServices = 100
	maxTxnOps   = 4 * txnServices
)

// filler makes the addresses of Services that Fill creates.
const (
	fillBits = 18
	fillStep = 40503 // odd: it reaches each address of the range once
)

func fillAddress(i int) netip.Addr {
	n := uint32(i*fillStep) % (1 << fillBits)
	return netip.AddrFrom4([4]byte{10, 100 + byte(n>>16), byte(n >> 8), byte(n)})
}

// Fill creates many Services of one address family. It writes them to etcd as the
// API server would: through the API, tens of thousands take minutes. The first
// has the number first, which gives it its address.
func (p *Plane) Fill(ctx context.Context, first int, services []Service) ([]*Placed, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: p.dial}}
	defer client.CloseIdleConnections()
	placed := make([]*Placed, len(services))
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for at := 0; at < len(services); at += txnServices {
		g.Go(func() error {
			var ops []putOp
			for i := at; i < min(at+txnServices, len(services)); i++ {
				s := services[i]
				placed[i] = &Placed{Service: s, ClusterIPs: []netip.Addr{fillAddress(first + i)}}
				more, err := stored(placed[i])
				if err != nil {
					return fmt.Errorf("making Service %s: %w", s.Name, err)
				}
				ops = append(ops, more...)
			}
			return commit(ctx, client, ops)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return placed, p.catchUp(parent, services)
}

// catchUp waits until the API server knows the last Service of each transaction
// that was written past it. It answers those who list and watch from a cache, which
// etcd fills after a while: a proxy that starts before would be ready with some of the
// Services.
func (p *Plane) catchUp(ctx context.Context, services []Service) error {
	cached := &metav1.GetOptions{ResourceVersion: "0"}
	for at := 0; at < len(services); at += txnServices {
		last := services[min(at+txnServices, len(services))-1]
		for {
			err := p.core.Get().Namespace(Namespace).Resource("services").Name(last.Name).VersionedParams(cached, metav1.ParameterCodec).Do(ctx).Error()
			if err == nil {
				err = p.discovery.Get().Namespace(Namespace).Resource("endpointslices").Name(endpointSlices(last)[0].Name).VersionedParams(cached, metav1.ParameterCodec).Do(ctx).Error()
			}
			if err == nil {
				break
			}
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("waiting until the API server knows Service %s: %w", last.Name, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// dial connects from beside etcd and the API server.
func (p *Plane) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = p.host().Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// putOp is one write of a transaction, as etcd's JSON gateway has it.
type putOp struct {
	RequestPut struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	} `json:"requestPut"`
}

func commit(ctx context.Context, client *http.Client, ops []putOp) error {
	body, err := json.Marshal(map[string]any{"success": ops})
	if err != nil {
		return fmt.Errorf("writing to etcd: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, etcdURL+"/v3/kv/txn", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("writing to etcd: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("writing to etcd: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	if err != nil {
		return fmt.Errorf("writing to etcd: %w", err)
	}
	return nil
}

// stored are a Service, its EndpointSlices and the object that holds its address,
// as the API server keeps them.
func stored(s *Placed) ([]putOp, error) {
	var ops []putOp
	put := func(key string, meta *metav1.ObjectMeta, o any) error {
		meta.UID, meta.CreationTimestamp = uuid.NewUUID(), metav1.NewTime(time.Now())
		value, err := json.Marshal(o)
		if err != nil {
			return err
		}
		var op putOp
		op.RequestPut.Key, op.RequestPut.Value = []byte("/registry/"+key), value
		ops = append(ops, op)
		return nil
	}
	address := s.ClusterIPs[0].String()
	holder := &networkingv1.IPAddress{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"},
		ObjectMeta: metav1.ObjectMeta{Name: address, Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io",
		}},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: Namespace, Name: s.Name}},
	}
	if err := put("ipaddresses/"+address, &holder.ObjectMeta, holder); err != nil {
		return nil, err
	}
	for _, slice := range endpointSlices(s.Service) {
		slice.TypeMeta = metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"}
		if err := put("endpointslices/"+Namespace+"/"+slice.Name, &slice.ObjectMeta, slice); err != nil {
			return nil, err
		}
	}
	o := object(s.Service)
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	o.Spec.ClusterIP, o.Spec.ClusterIPs = address, []string{address}
	o.Spec.IPFamilies, o.Spec.IPFamilyPolicy = []corev1.IPFamily{corev1.IPv4Protocol}, new(corev1.IPFamilyPolicySingleStack)
	return ops, put("services/specs/"+Namespace+"/"+s.Name, &o.ObjectMeta, o)
}
