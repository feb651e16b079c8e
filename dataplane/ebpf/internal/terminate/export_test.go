package terminate

// OpenNetlink is Open on a kernel that cannot end sockets from an iterator.
func OpenNetlink(cgroup string) *Terminator { return &Terminator{cgroup: cgroup, end: &byNetlink{}} }
