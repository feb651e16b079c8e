package result

import (
	"fmt"
	"time"
)

// The parts of a run.
const (
	Traffic      = "traffic"
	FirstPacket  = "first packet"
	ControlPlane = "control plane"
)

// Parts are all parts, in the order in which they run and are told.
func Parts() []string { return []string{Traffic, FirstPacket, ControlPlane} }

// Cases and metrics by which plots and goals find what was measured.
const (
	PodToClusterIP    = "pod to ClusterIP, endpoint on another node"
	OutsideToNodePort = "outside to NodePort, endpoint on another node"
	CPU               = "CPU: " // of the metric that follows

	TimeToConnect = "time to connect, pod to ClusterIP"
	Mean          = "mean"

	ColdStart = "cold start, until all Services answer"
	ColdSync  = "cold start, of that programming the kernel"
	Time      = "time"
	Memory    = "memory"
	Resident  = "resident"
)

// Few is the number of Services that others are compared to.
const Few = 10

// RowPause is the time between two changes of an endpoint of which each is timed.
const RowPause = 50 * time.Millisecond

// EndpointChanged is the case of changes with a pause between them.
func EndpointChanged(pause time.Duration) string {
	return fmt.Sprintf("one endpoint changed, %s apart", pause)
}

// Thousands writes a number with commas.
func Thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
