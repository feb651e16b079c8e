package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/agent"
)

func runCommand() *cobra.Command {
	o, askedVersion := agent.NewOptions(), false
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent on this node",
		Long: `Run the agent on this node.

It watches Services and EndpointSlices and makes this node's kernel forward
them. When it ends, forwarding stays as it is. It takes kube-proxy's flags and
configuration; docs/kube-proxy.md tells what becomes of each.`,
		Example: `  switchyard run --config /var/lib/kube-proxy/config.conf --hostname-override node-1
  switchyard run --kubeconfig /etc/kubernetes/kubelet.conf --cluster-cidr 10.244.0.0/16
  switchyard run --manifests ./manifests`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Not cobra's own: its template keeps the linker from dropping methods
			// that nobody calls, 6 MB of them.
			if askedVersion {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
				return err
			}
			return agent.Run(cmd.Context(), o, version)
		},
	}
	o.AddFlags(cmd.Flags())
	cmd.Flags().BoolVar(&askedVersion, "version", false, "print the version and end")
	return cmd
}
