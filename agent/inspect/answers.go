// Package inspect answers what the agent wants, what the kernel holds, and why.
//
// An Inspector makes the answers out of a running agent's parts. They travel as
// JSON over a Unix socket (Serve, Client); package show prints them for people.
package inspect

import "time"

// Status is how the agent and its node's kernel stand.
type Status struct {
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Node      Node      `json:"node"`
	Backend   Backend   `json:"backend"`
	Sockets   *Sockets  `json:"sockets,omitempty"`
	Health    Health    `json:"health"`
	Source    []Contact `json:"source,omitempty"` // the API server, by resource; none: nobody asks one
	Sync      Sync      `json:"sync"`
	Counts    Counts    `json:"counts"`
	Drift     Drift     `json:"drift"`
	Conflicts []string  `json:"conflicts,omitempty"` // frontends that several Services want
	Refused   []string  `json:"refused,omitempty"`   // Service ports that the backend cannot program, and why
	// Leftovers are what other backends and kube-proxy left in the kernel, by whose
	// it is: it is in force, and nobody updates it.
	Leftovers map[string][]string `json:"leftovers,omitempty"`
	Firewall  *Firewall           `json:"firewall,omitempty"` // nil: the backend looks after it, or nobody does
}

// Firewall is how the host's own firewall stands to Services.
type Firewall struct {
	KeptOpen []string `json:"keptOpen,omitempty"` // its rules that drop what nobody accepts
	Error    string   `json:"error,omitempty"`    // why it could not be opened, or looked at
}

// Node is what is known of the node.
type Node struct {
	Name     string   `json:"name"`
	Zone     string   `json:"zone,omitempty"`
	Families []string `json:"families"`
	// Lacking says why no other address family is programmed, if the host has one.
	Lacking   string   `json:"lacking,omitempty"`
	NodePorts []string `json:"nodePortAddresses"` // where NodePorts answer
	LocalPods string   `json:"localPods"`         // how packets of this node's pods are told from others
}

// Backend is the kernel mechanism in use, and why it was chosen.
type Backend struct {
	Name       string       `json:"name"`
	Asked      string       `json:"asked"` // what --backend says
	PassedOver []PassedOver `json:"passedOver,omitempty"`
}

// PassedOver is a backend that is preferred to the one chosen and does not work
// here.
type PassedOver struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Contact is how the source of objects last answered about one resource.
type Contact struct {
	Resource string    `json:"resource"`
	Last     time.Time `json:"last,omitzero"`   // when it last answered; zero: never
	Error    string    `json:"error,omitempty"` // of the last request, where that failed
}

// Health is what the health paths say.
type Health struct {
	Healthy      bool   `json:"healthy"`
	Ready        bool   `json:"ready"`
	NodeEligible bool   `json:"nodeEligible"` // load balancers may send traffic here
	Reason       string `json:"reason,omitempty"`
}

// Sync is how the kernel stands to what is wanted.
type Sync struct {
	Wanted      uint64    `json:"wanted"`  // revision of the newest Snapshot; 0: none yet
	InForce     uint64    `json:"inForce"` // newest revision that is wholly in the kernel; 0: none yet
	BehindSince time.Time `json:"behindSince,omitzero"`
	LastSync    time.Time `json:"lastSync,omitzero"`
	Error       string    `json:"error,omitempty"` // of the last Sync
}

// Counts is how much is wanted.
type Counts struct {
	Services     int `json:"services"`
	ServicePorts int `json:"servicePorts"` // one for each port and family
	Frontends    int `json:"frontends"`
	Endpoints    int `json:"endpoints"` // in use here, once for each ServicePort
}

// Drift is what comparisons of the kernel with what is wanted found since the
// agent's start.
type Drift struct {
	EverySeconds float64      `json:"everySeconds"`
	Checks       uint64       `json:"checks"`
	Found        uint64       `json:"found"`
	Repairs      uint64       `json:"repairs"`
	LastCheck    time.Time    `json:"lastCheck,omitzero"`
	LastFound    *VerifyEvent `json:"lastFound,omitempty"`
}

// VerifyEvent is a comparison that found something.
type VerifyEvent struct {
	At          time.Time `json:"at"`
	Differences []string  `json:"differences"`
	Repaired    bool      `json:"repaired"`
}

// Services is the answer to which Services there are.
type Services struct {
	// Counted says which connections are counted; "": none.
	Counted  string    `json:"counted,omitempty"`
	Services []Service `json:"services"`
}

// Service is one port of one Service in one address family.
type Service struct {
	Namespace       string     `json:"namespace"`
	Name            string     `json:"name"`
	Port            string     `json:"port,omitempty"` // its name
	Protocol        string     `json:"protocol"`
	Family          string     `json:"family"`
	InternalPolicy  string     `json:"internalTrafficPolicy"`
	ExternalPolicy  string     `json:"externalTrafficPolicy"`
	AffinitySeconds int        `json:"affinitySeconds,omitempty"`
	Frontends       []Frontend `json:"frontends"`
	Endpoints       []Endpoint `json:"endpoints"`
}

// Frontend is an address and port where a Service answers.
type Frontend struct {
	Kind    string   `json:"kind"`
	Address string   `json:"address"` // of a NodePort: "*:30080", each of the node's addresses that take NodePorts
	Sources []string `json:"sources,omitempty"`
}

// Endpoint is one that EndpointSlices tell of.
type Endpoint struct {
	Address string `json:"address"`
	Node    string `json:"node,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Local   bool   `json:"local"` // on this node
	State   string `json:"state"` // ready, not ready, terminating (and serving), or stopped
	// UsedBy are the clients whose connections it may get: those of the ClusterIP,
	// and of the other frontends those from outside and from inside the node.
	UsedBy []string `json:"usedBy"`
	// LeftOut are the rules that keep it from other clients.
	LeftOut []LeftOut `json:"leftOut,omitempty"`
	// Connections and Bytes are of all connections through the Service that stand
	// now, those to an endpoint that gets no new ones too; absent: nobody counts.
	Connections *uint64 `json:"connections,omitempty"`
	Bytes       *uint64 `json:"bytes,omitempty"`
}

// LeftOut is the rule that keeps an endpoint from some clients.
type LeftOut struct {
	Clients string `json:"clients"`
	Rule    string `json:"rule"`
}

// Explanation is what becomes of connections to an address.
type Explanation struct {
	To       string `json:"to"` // address and port
	Protocol string `json:"protocol"`
	// Service is the one that answers there; nil: none, and Otherwise says what
	// happens instead.
	Service   *Service       `json:"service,omitempty"`
	Frontend  *Frontend      `json:"frontend,omitempty"`
	Otherwise string         `json:"otherwise,omitempty"`
	Without   []string       `json:"without,omitempty"` // Services that want the frontend too and do not get it
	Clients   []ClientAnswer `json:"clients,omitempty"`
	Kernel    *Kernel        `json:"kernel,omitempty"`
}

// ClientAnswer is what becomes of the connections of one client, or of a kind of them.
type ClientAnswer struct {
	From    string   `json:"from,omitempty"` // the client's address, if it was given
	Is      string   `json:"is"`             // pod, node or outside
	Because string   `json:"because,omitempty"`
	Rules   []string `json:"rules"` // that apply to it, in the order in which they do
	// Outcome is balanced, rejected or dropped.
	Outcome string `json:"outcome"`
	// Masqueraded says that endpoints see the node's address in place of the
	// client's. Itself is the endpoint that the client is: it sees the node too.
	Masqueraded    bool       `json:"masqueraded"`
	MasqueradeRule string     `json:"masqueradeRule,omitempty"`
	Itself         string     `json:"itself,omitempty"`
	Endpoints      []Endpoint `json:"endpoints,omitempty"`
	LeftOut        []Endpoint `json:"leftOut,omitempty"`
}

// Kernel is what the kernel holds of a frontend beside what was wanted.
type Kernel struct {
	Wanted      Held     `json:"wanted"`
	Holds       *Held    `json:"holds,omitempty"` // nil: nothing
	Agrees      bool     `json:"agrees"`
	Differences []string `json:"differences,omitempty"`
	// Elsewhere counts differences that are not of this frontend.
	Elsewhere int    `json:"elsewhere,omitempty"`
	Error     string `json:"error,omitempty"` // why it could not be read
}

// Held is who answers at a frontend: endpoints, or else reject or drop.
type Held struct {
	Outside string `json:"outside"`
	Inside  string `json:"inside"`
}

// Verification is a comparison of the kernel with what is wanted.
type Verification struct {
	At          time.Time `json:"at"`
	TookSeconds float64   `json:"tookSeconds"`
	Revision    uint64    `json:"revision"`
	Differences []string  `json:"differences"`
	Repaired    bool      `json:"repaired"`
	Left        []string  `json:"left,omitempty"` // differences that the repair left
}
