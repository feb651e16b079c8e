package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/switchyard-io/switchyard/agent"
	"github.com/switchyard-io/switchyard/agent/inspect/show"
)

func doctorCommand() *cobra.Command {
	a := &asker{}
	o := agent.NewOptions()
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this kernel and system can do for each backend, and what to do about each lack",
		Long: `Tell what this kernel and system can do for each backend, and what to do about
each lack: privileges, kernel features, tools, settings, and other programs that
balance Services here. It changes nothing and needs no agent; run it in the
network namespace where the agent runs, which is that of the node.

The exit status is 1 where no backend works, or not the one that --backend names.`,
		Example: `  switchyard doctor
  switchyard doctor -o json | jq '.checks[] | select(.state != "ok")'`,
		Args: cobra.NoArgs,
	}
	o.AddBackendFlags(cmd.Flags())
	a.addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := agent.Load(o)
		if err := errors.Join(a.check(), err); err != nil {
			return err
		}
		r := agent.Examine(cmd.Context(), c)
		body, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
		if err := a.print(cmd, append(body, '\n'), func(p *show.Printer) error { return p.Doctor(r) }); err != nil {
			return err
		}
		if !r.Works() {
			return errNoBackend
		}
		return nil
	}
	return cmd
}
