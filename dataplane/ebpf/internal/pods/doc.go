// Package pods finds the network namespaces of pods and tells which of them translate their own outgoing connections.
//
// A service mesh redirects what a pod sends in the nat OUTPUT chain of the pod's
// network namespace, by the Service's address. A socket that was translated as it
// connected would pass such a rule by. So sockets of a namespace are translated
// once the agent has looked into it and found no such rule, and until one comes.
package pods
