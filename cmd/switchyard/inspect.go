package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/switchyard-io/switchyard/agent/inspect"
	"github.com/switchyard-io/switchyard/agent/inspect/show"
)

// Errors that a command has printed as its answer already.
var (
	errDiffers   = errors.New("the kernel differs from what is wanted")
	errNoBackend = errors.New("no backend works here")
)

// wrong is the error of a flag's value.
func wrong(flag string, value any, allowed string) error {
	return fmt.Errorf("--%s is %q; %s", flag, fmt.Sprint(value), allowed)
}

func addSocketFlag(fs *pflag.FlagSet, socket *string, usage string) {
	fs.StringVar(socket, "socket", inspect.DefaultSocket, usage)
}

// inspectCommands ask a running agent, and the machine.
func inspectCommands() []*cobra.Command {
	get := &cobra.Command{
		Use:   "get",
		Short: "List what the agent of this node knows",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	get.AddCommand(getServicesCommand())
	return []*cobra.Command{statusCommand(), get, explainCommand(), verifyCommand(), doctorCommand()}
}

// asker is what the commands that ask an agent have in common.
type asker struct {
	client inspect.Client
	format string
	wide   bool // the command has the format wide
}

func (a *asker) add(cmd *cobra.Command) {
	addSocketFlag(cmd.Flags(), &a.client.Socket, "Unix socket of the agent")
	a.addOutput(cmd)
}

func (a *asker) addOutput(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.format, "output", "o", "table", "how to print: "+strings.Join(a.formats(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(a.formats(), cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (a *asker) formats() []string {
	if a.wide {
		return []string{"table", "wide", "json", "yaml"}
	}
	return []string{"table", "json", "yaml"}
}

func (a *asker) check() error {
	for _, f := range a.formats() {
		if a.format == f {
			return nil
		}
	}
	return wrong("output", a.format, "it can be "+strings.Join(a.formats(), ", "))
}

// print writes the answer as it came, or as tables.
func (a *asker) print(cmd *cobra.Command, body []byte, tables func(*show.Printer) error) error {
	return printAs(a.format, cmd.OutOrStdout(), body, tables)
}

func printAs(format string, out io.Writer, body []byte, tables func(*show.Printer) error) error {
	switch format {
	case "json":
		_, err := out.Write(body)
		return err
	case "yaml":
		y, err := yaml.JSONToYAML(body)
		if err == nil {
			_, err = out.Write(y)
		}
		return err
	}
	return tables(&show.Printer{Out: out, Colour: isTerminal(out), Now: time.Now()})
}

// isTerminal tells whether colours can be shown, and are wanted.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func statusCommand() *cobra.Command {
	a := &asker{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the agent and this node's kernel stand",
		Long: `Show how the agent and this node's kernel stand: which backend is in use and
why, what is wanted and what is in force, health, and what comparisons of the
kernel with what is wanted found.`,
		Example: `  switchyard status
  switchyard status -o json | jq .sync`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.check(); err != nil {
				return err
			}
			s, body, err := a.client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(cmd, body, func(p *show.Printer) error { return p.Status(s) })
		},
	}
	a.add(cmd)
	return cmd
}

func getServicesCommand() *cobra.Command {
	a := &asker{wide: true}
	var namespace string
	cmd := &cobra.Command{
		Use:     "services [[NAMESPACE/]NAME]",
		Aliases: []string{"service", "svc"},
		Short:   "List Services: where they answer, and which endpoints are in use on this node",
		Long: `List Services: where they answer, and which endpoints are in use on this node.

With a NAME or -o wide, each endpoint is told with its node, zone and state,
who uses it on this node, and the rule that keeps it from others: clients of the
ClusterIP; and of NodePorts, load balancer and external addresses, clients from
outside, and those inside (this node and its pods). CONNS and BYTES are those of
connections through the Service that stand now, "-" where nothing counts them.
Bytes need the sysctl net.netfilter.nf_conntrack_acct=1.`,
		Example: `  switchyard get services
  switchyard get services -n shop
  switchyard get services shop/web
  switchyard get services -o wide`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.check(); err != nil {
				return err
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
				if ns, rest, ok := strings.Cut(name, "/"); ok {
					namespace, name = ns, rest
				}
			}
			s, body, err := a.client.Services(cmd.Context(), namespace, name)
			if err != nil {
				return err
			}
			return a.print(cmd, body, func(p *show.Printer) error {
				if name != "" || a.format == "wide" {
					return p.ServicesWide(s)
				}
				return p.Services(s)
			})
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.names(cmd, namespace, args)
		},
	}
	a.add(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "just the Services of this namespace")
	return cmd
}

// names completes the name of a Service.
func (a *asker) names(cmd *cobra.Command, namespace string, args []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, _, err := a.client.Services(cmd.Context(), namespace, "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, svc := range s.Services {
		if namespace != "" {
			names = append(names, svc.Name)
		} else {
			names = append(names, svc.Namespace+"/"+svc.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func explainCommand() *cobra.Command {
	a := &asker{}
	var from string
	var kernel bool
	cmd := &cobra.Command{
		Use:   "explain ADDRESS:PORT[/PROTOCOL]",
		Short: "Tell what becomes of connections to an address, and why",
		Long: `Tell what becomes of connections to an address, and why: which Service answers
there, the rules that apply to the client, the endpoints that may answer, each
one that is left out with the rule that left it out, whether the endpoint sees
the client's address or the node's, and what the kernel really holds. For an
address that is no Service's it says what happens instead.

Without --from it tells of each kind of client: pods of this node, the node
itself, and clients from outside. PROTOCOL is TCP (the default), UDP or SCTP.`,
		Example: `  switchyard explain 10.96.0.10:53/UDP
  switchyard explain --from 10.244.1.7 10.96.0.10:53/UDP
  switchyard explain --from 203.0.113.9 192.0.2.1:30080
  switchyard explain '[fd96::a]:443'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("explain takes one address and port, as in 10.96.0.1:443 or 10.96.0.10:53/UDP, and was given %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.check(); err != nil {
				return err
			}
			to, protocol, given := strings.Cut(args[0], "/")
			if !given {
				protocol = "TCP"
			}
			x, body, err := a.client.Explain(cmd.Context(), to, protocol, from, kernel)
			if err != nil {
				return err
			}
			return a.print(cmd, body, func(p *show.Printer) error { return p.Explanation(x) })
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	a.add(cmd)
	cmd.Flags().StringVar(&from, "from", "", "address of the client; default: each kind of client")
	cmd.Flags().BoolVar(&kernel, "kernel", true, "read back what the kernel holds; with many thousands of Services that takes seconds")
	return cmd
}

func verifyCommand() *cobra.Command {
	a := &asker{}
	var repair bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the kernel with what is wanted, and repair it if asked to",
		Long: `Compare the kernel with what is wanted: everything that Switchyard programs is
read back, and each difference is listed.

The exit status is 0 where the kernel is as wanted or --repair made it so, and 1
where it is not. The agent does the same by itself every --verify-interval.`,
		Example: `  switchyard verify
  switchyard verify --repair`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.check(); err != nil {
				return err
			}
			v, body, err := a.client.Verify(cmd.Context(), repair)
			if err != nil {
				return err
			}
			if err := a.print(cmd, body, func(p *show.Printer) error { return p.Verification(v) }); err != nil {
				return err
			}
			if len(v.Differences) > 0 && (!v.Repaired || len(v.Left) > 0) {
				return errDiffers
			}
			return nil
		},
	}
	a.add(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "make the kernel as wanted where it is not")
	return cmd
}
