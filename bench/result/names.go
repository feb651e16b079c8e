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

// Cases and metrics of a proxy's own work.
const (
	Restart      = "restart, until a Service that came meanwhile answers"
	ServiceAdded = "one Service added, until it answers"
	Rolling      = "a rolling update of 1,000 pods, 100 at a time, 100ms apart"
	NoneOld      = "from the last change to the last new flow to an old pod"
	NewAnswers   = "from the last change to the first answer by the last pods"
	Each         = "each time"
	P50          = "p50"
	P99          = "p99"
	Changes      = "changes"
	Lag          = "lag of a change, " // and which of all
	ProxyCPU     = "CPU of the proxy"
	Syncs        = "syncs"
	Audits       = "comparisons of the kernel with what is wanted"
	AuditCost    = "p50, such comparisons as often as there may be against none"
)

// ColdStage is the metric of a stage of Switchyard's cold start; see its metric
// switchyard_start_seconds.
func ColdStage(stage string) string { return "of that: " + stage }

// MemoryOf is the metric of one part of Switchyard's memory.
func MemoryOf(part string) string { return "of that: " + part }

// ChurnRate is how many changes a second stand for much going on.
const ChurnRate = 100

// Churn is the case of them.
func Churn() string { return fmt.Sprintf("%d changes a second", ChurnRate) }

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
