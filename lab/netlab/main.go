package netlab

import (
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
)

// roleVariable names the role of a process that a lab started.
const roleVariable = "SWITCHYARD_LAB_ROLE"

// hostRole serves and dials.
const hostRole = "host"

// connFD is the file descriptor of the connection to the parent.
const connFD = 3

// Role makes the RPC services of a role, by name (see net/rpc).
type Role func() map[string]any

// Main must be called first of all in the main function or TestMain of a
// program that makes labs. In a process that a lab started it plays that
// process's role, the host's or one of those given, and never returns: the
// process ends when its parent closes the connection or dies.
func Main(roles map[string]Role) {
	name := os.Getenv(roleVariable)
	if name == "" {
		return
	}
	if err := play(name, roles); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func play(name string, roles map[string]Role) error {
	// What this process starts has no part in the lab's machinery.
	if err := os.Unsetenv(roleVariable); err != nil {
		return fmt.Errorf("clearing %s: %w", roleVariable, err)
	}
	role := roles[name]
	if name == hostRole {
		role = func() map[string]any { return map[string]any{"Host": newHostService()} }
	}
	if role == nil {
		return fmt.Errorf("this program has no role %q", name)
	}
	conn, err := parentConn()
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	for name, service := range role() {
		if err := server.RegisterName(name, service); err != nil {
			return fmt.Errorf("serving %s: %w", name, err)
		}
	}
	server.ServeConn(conn) // until the parent closes it
	return nil
}

func parentConn() (io.ReadWriteCloser, error) {
	f := os.NewFile(connFD, "parent")
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connecting to the lab that started this process: %w", err)
	}
	_ = f.Close() // FileConn has its own copy
	return conn, nil
}
