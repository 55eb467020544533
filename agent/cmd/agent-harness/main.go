// agent-harness serves the agent's control handler on a Unix socket, for tests without a machine: each connection is one
// control stream. With -egress it dials that socket as an egress stream. It changes nothing on the host it runs on, and its program can be replaced by another one of its kind. SIGUSR1 makes it say that
// the guest powers itself off, SIGUSR2 that it reboots, SIGHUP that it goes down.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/control"
	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/egress"
	"github.com/workfort/nexus/agent/internal/facts"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/takeover"
	"github.com/workfort/nexus/agent/internal/wire"
)

// bystander is a machine that is left alone.
type bystander struct {
	clock
	client *egress.Client
}

func (*bystander) Settle(wire.Settle) error { return nil }

// Grow says that the root was grown, and that there is no other disk.
func (*bystander) Grow(device string, _ int64) (string, error) {
	if device == "vda" {
		return "/", nil
	}
	return "", disks.ErrNotMounted
}

func (b *bystander) Power(kind string, _ time.Duration) { b.client.Ending(kind, "host") }

func main() {
	switch strings.Join(os.Args[1:], " ") {
	case takeover.Verb:
		takeover.Claim("agent-harness")
		return
	case "version": // so that a daemon may have it for its agent
		fmt.Println(wire.Version)
		return
	}
	dial := flag.String("egress", "", "socket of the host's egress server")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: agent-harness [-egress <socket>] <socket>")
		os.Exit(2)
	}
	left := takeover.Left()
	id := facts.NewID()
	if left != nil && left.AgentID != "" {
		id = left.AgentID
	}
	gather := func() wire.Facts { return facts.Gather(id) }
	client := &egress.Client{Facts: gather}
	table, registry := left.Commands(false)
	registry.Home = "/nonexistent" // a login shell here would run what its user wrote for logins, and be killed in the middle of it
	machine := &bystander{client: client}
	machine.follow()
	next := &takeover.Agent{Program: "agent-harness", ID: id, Execs: registry, Table: table, Available: facts.Available}
	server := &control.Server{Execs: registry, Facts: gather, System: machine, Successor: next}
	said := make(chan os.Signal, 1)
	signal.Notify(said, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	safe.Go(func() {
		kinds := map[os.Signal]string{syscall.SIGUSR1: "poweroff", syscall.SIGUSR2: "reboot", syscall.SIGHUP: "down"}
		for s := range said {
			client.Ending(kinds[s], "guest")
		}
	})
	if left != nil {
		_ = os.Remove(flag.Arg(0)) // its listener went with the program before
	}
	l, err := net.Listen("unix", flag.Arg(0))
	if err != nil {
		fmt.Fprintf(os.Stderr, "nexus: cannot listen: %v\n", err)
		os.Exit(1)
	}
	if *dial != "" {
		safe.Go(func() {
			egress.Redial(client, func() (net.Conn, error) { return net.Dial("unix", *dial) })
		})
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			fmt.Fprintf(os.Stderr, "nexus: cannot accept: %v\n", err)
			os.Exit(1)
		}
		safe.Go(func() { server.Serve(conn) })
	}
}
