package kube

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/metrics"
)

// protobufMagic is what an answer in protobuf begins with.
const protobufMagic = "k8s\x00"

// list is what becomes of a list of objects, read one object at a time.
type list struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object // converted
}

// DeepCopyObject implements runtime.Object. Nobody changes a list.
func (l *list) DeepCopyObject() runtime.Object { return l }

// lister asks for lists and converts what is in them as it arrives: an API server
// that does not stream lists sends tens of thousands of objects at once, which
// together are ten times what is kept of them. client-go would have the whole
// answer in memory, and then all objects.
type lister struct {
	decoder runtime.Decoder // of lists that are not in protobuf
	item    func(protobuf []byte) (runtime.Object, error)
}

func (l lister) list(ctx context.Context, r *rest.Request) (_ runtime.Object, err error) {
	begin := time.Now()
	// client-go keeps neither of what is read as it comes.
	defer func() { metrics.RequestLatency.Observe(ctx, http.MethodGet, *r.URL(), time.Since(begin)) }()
	body, err := r.Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := body.Close(); err == nil {
			err = closeErr
		}
	}()
	const buffer = 64 << 10
	answer := &counted{Reader: body}
	defer func() { metrics.ResponseSize.Observe(ctx, http.MethodGet, r.URL().Host, float64(answer.bytes)) }()
	in := bufio.NewReaderSize(answer, buffer)
	if magic, _ := in.Peek(len(protobufMagic)); string(magic) != protobufMagic { // an error is met again below
		return l.whole(in)
	}
	return l.protobuf(in)
}

// counted counts what is read.
type counted struct {
	io.Reader
	bytes int64
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.bytes += int64(n)
	return n, err
}

// whole reads a list in JSON.
func (l lister) whole(in io.Reader) (runtime.Object, error) {
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("reading a list: %w", err)
	}
	o, err := runtime.Decode(l.decoder, text)
	if err != nil {
		return nil, fmt.Errorf("reading a list: %w", err)
	}
	if s, ok := o.(*metav1.Status); ok && s.Status != metav1.StatusSuccess {
		return nil, apierrors.FromObject(s)
	}
	if !apimeta.IsListType(o) {
		return nil, fmt.Errorf("reading a list: an unexpected %T", o)
	}
	return o, nil
}

// Numbers of fields in the messages runtime.Unknown, which everything in protobuf is
// wrapped in, and in every list.
const (
	unknownType, unknownRaw = 1, 2
	listMeta, listItems     = 1, 2
)

// protobuf reads a list in protobuf.
func (l lister) protobuf(in *bufio.Reader) (runtime.Object, error) {
	m := &messages{in: in}
	if _, err := m.bytes(int64(len(protobufMagic))); err != nil {
		return nil, fmt.Errorf("reading a list: %w", err)
	}
	out, kind, whole := &list{}, runtime.TypeMeta{}, false
	err := m.each(unbounded, func(number protowire.Number, size int64) error {
		switch number {
		case unknownType:
			return m.into(&kind, size)
		case unknownRaw:
			if !strings.HasSuffix(kind.Kind, "List") {
				return fmt.Errorf("an unexpected %q", kind.Kind)
			}
			whole = true
			return l.items(m, size, out)
		}
		return m.skip(size)
	})
	if err != nil {
		return nil, fmt.Errorf("reading a list: %w", err)
	}
	if !whole {
		return nil, errors.New("reading a list: there is none")
	}
	return out, nil
}

// items reads the list itself.
func (l lister) items(m *messages, size int64, out *list) error {
	return m.each(size, func(number protowire.Number, size int64) error {
		switch number {
		case listMeta:
			return m.into(&out.ListMeta, size)
		case listItems:
			text, err := m.bytes(size)
			if err != nil {
				return err
			}
			o, err := l.item(text)
			if err != nil {
				return fmt.Errorf("object %d: %w", len(out.Items), err)
			}
			out.Items = append(out.Items, o)
			return nil
		}
		return m.skip(size)
	})
}

// messages reads protobuf messages, one in the other, as they arrive.
type messages struct {
	in   *bufio.Reader
	read int64        // bytes so far
	room bytes.Buffer // for bytes
}

const (
	unbounded = 1<<63 - 1 // the size of a message that ends with the input
	// mostOfField is the most bytes of a field that is read as one; an object in etcd
	// has two million at most.
	mostOfField = 64 << 20
)

// each reads a message of so many bytes and tells field of each field that has
// bytes. field reads all of those.
func (m *messages) each(size int64, field func(number protowire.Number, size int64) error) error {
	end := int64(unbounded)
	if size != unbounded {
		end = m.read + size
	}
	for m.read < end {
		tag, err := m.varint()
		if errors.Is(err, io.EOF) && end == unbounded {
			return nil
		}
		if err != nil {
			return unexpected(err)
		}
		number, wire := protowire.DecodeTag(tag)
		n, hasBytes, err := m.sizeOf(wire)
		switch {
		case err != nil:
			return unexpected(err)
		case n < 0 || n > end-m.read:
			return fmt.Errorf("field %d is longer than what it is in", number)
		case hasBytes:
			err = field(number, n)
		default:
			err = m.skip(n)
		}
		if err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// sizeOf returns how many bytes of a field follow, by its wire type, and whether the
// field is made of bytes.
func (m *messages) sizeOf(wire protowire.Type) (n int64, hasBytes bool, err error) {
	switch wire {
	case protowire.VarintType:
		_, err = m.varint()
		return 0, false, err
	case protowire.Fixed64Type:
		return 8, false, nil
	case protowire.Fixed32Type:
		return 4, false, nil
	case protowire.BytesType:
		size, err := m.varint()
		return int64(size), true, err
	}
	return 0, false, fmt.Errorf("a field of the unknown wire type %d", wire)
}

// unexpected is an error within a message: it must not end there.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadByte implements io.ByteReader.
func (m *messages) ReadByte() (byte, error) {
	b, err := m.in.ReadByte()
	if err == nil {
		m.read++
	}
	return b, err
}

func (m *messages) varint() (uint64, error) { return binary.ReadUvarint(m) }

func (m *messages) skip(size int64) error {
	n, err := io.CopyN(io.Discard, m.in, size)
	m.read += n
	return err
}

// bytes reads so many bytes, which are valid until the next call.
func (m *messages) bytes(size int64) ([]byte, error) {
	if size > mostOfField {
		return nil, fmt.Errorf("a field of %d bytes", size)
	}
	m.room.Reset()
	n, err := io.CopyN(&m.room, m.in, size)
	m.read += n
	return m.room.Bytes(), unexpected(err)
}

// into reads a message that is small.
func (m *messages) into(o interface{ Unmarshal([]byte) error }, size int64) error {
	text, err := m.bytes(size)
	if err != nil {
		return err
	}
	return o.Unmarshal(text)
}
