package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// node is a file, a folder or a symbolic link.
type node struct {
	mode   int64
	data   []byte
	target string // of a link
	dir    bool
	from   string // the Debian package that it is from; "": none
}

// tree is a file system by path, without a leading slash.
type tree map[string]node

func (t tree) put(name string, mode int64, data []byte) { t[name] = node{mode: mode, data: data} }
func (t tree) link(name, target string)                 { t[name] = node{mode: 0o777, target: target} }
func (t tree) folder(name string, mode int64)           { t[name] = node{mode: mode, dir: true} }

// merged is where a path of Debian 12 really is: /bin, /sbin and /lib* are
// links to folders below /usr, whatever a package calls them.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for _, top := range []string{"bin", "sbin", "lib", "lib64"} {
		if name == top || strings.HasPrefix(name, top+"/") {
			return "usr/" + name
		}
	}
	return name
}

// resolve follows links until a file.
func (t tree) resolve(name string) (string, error) {
	const most = 8
	at := merged(name)
	for range most {
		n, ok := t[at]
		switch {
		case !ok:
			return "", fmt.Errorf("/%s is not there", at)
		case n.target == "":
			return at, nil
		case path.IsAbs(n.target):
			at = merged(n.target)
		default:
			at = merged(path.Join(path.Dir(at), n.target))
		}
	}
	return "", fmt.Errorf("/%s is a link to itself", name)
}

// paths are those of all nodes and of the folders above them, each folder
// before what is in it.
func (t tree) paths() []string {
	all := map[string]bool{}
	for name := range t {
		for ; name != "."; name = path.Dir(name) {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// at is the node of a path, which may be a folder that nobody put there.
func (t tree) at(name string) node {
	if n, ok := t[name]; ok {
		return n
	}
	return node{mode: 0o755, dir: true}
}

// pack writes the tree as a tar archive. Equal trees give equal archives.
func (t tree) pack(to io.Writer) error {
	w := tar.NewWriter(to)
	for _, name := range t.paths() {
		n := t.at(name)
		h := &tar.Header{Name: name, Mode: n.mode, Size: int64(len(n.data)), Typeflag: tar.TypeReg,
			ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		switch {
		case n.dir:
			h.Name, h.Typeflag = name+"/", tar.TypeDir
		case n.target != "":
			h.Linkname, h.Typeflag = n.target, tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("packing /%s: %w", name, err)
		}
		if _, err := w.Write(n.data); err != nil {
			return fmt.Errorf("packing /%s: %w", name, err)
		}
	}
	return w.Close()
}

func (t tree) archive() ([]byte, error) {
	var out bytes.Buffer
	err := t.pack(&out)
	return out.Bytes(), err
}

// unpack writes the tree below a folder.
func (t tree) unpack(root string) error {
	for _, name := range t.paths() {
		n, to := t.at(name), filepath.Join(root, name)
		var err error
		switch {
		case n.dir:
			if err = os.MkdirAll(to, 0o755); err == nil {
				err = os.Chmod(to, os.FileMode(n.mode&0o777))
			}
		case n.target != "":
			err = os.Symlink(n.target, to)
		default:
			err = os.WriteFile(to, n.data, os.FileMode(n.mode))
		}
		if err != nil {
			return fmt.Errorf("writing the root file system: %w", err)
		}
	}
	return nil
}
