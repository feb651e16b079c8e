package cgroup

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	cases := map[string]struct {
		mountinfo string
		want      Tree
		bad       bool
	}{
		"all v2": {
			mountinfo: "24 21 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
			want:      Tree{V2: "/sys/fs/cgroup"},
		},
		"hybrid": {
			mountinfo: `22 1 0:20 / /proc rw - proc proc rw
31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
32 30 0:28 / /sys/fs/cgroup/memory rw,nosuid shared:7 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`,
			want: Tree{V2: "/sys/fs/cgroup/unified", V1: []string{"/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/memory"}},
		},
		"v2 mounted twice": {
			mountinfo: "24 21 0:21 / /sys/fs/cgroup rw - cgroup2 none rw\n25 21 0:21 / /mnt rw - cgroup2 none rw\n",
			want:      Tree{V2: "/sys/fs/cgroup"},
		},
		"v1 only":   {mountinfo: "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", bad: true},
		"torn line": {mountinfo: "31 30 - cgroup2\n", bad: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := parse(strings.NewReader(c.mountinfo))
			if (err != nil) != c.bad {
				t.Fatalf("error %v, want one: %v", err, c.bad)
			}
			if err == nil && !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}
