package main

import (
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/account"
	"github.com/workfort/nexus/agent/internal/channel"
	"github.com/workfort/nexus/agent/internal/control"
	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/egress"
	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/facts"
	"github.com/workfort/nexus/agent/internal/machine"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/takeover"
	"github.com/workfort/nexus/agent/internal/wire"
)

// maxFiles bounds the descriptors of the agent and, for a child inherits it, what a command may ask for.
const openFiles, maxFiles = 4096, 1 << 20

// pid1 runs the machine. It never returns.
func pid1() {
	defer machine.Reset()
	defer safe.Recover()
	_ = os.Chdir("/")
	unix.Umask(0o022)
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	for name, value := range account.ImageEnvironment("") {
		os.Setenv(name, value)
	}
	surviveSignals()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // Ctrl-Alt-Del becomes SIGINT
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPWR)
	left := takeover.Left()
	if left == nil { // else all of this is as somebody may want it by now
		if err := machine.MountEarly(); err != nil {
			safe.Logf("%v", err)
		}
		machine.MountGroups()
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles, Max: maxFiles}); err != nil {
		safe.Logf("cannot raise the limit of open files: %v", err)
	}
	params := machine.ReadParams()
	nameHost(params, left)

	a := newAgent(params, left, true)
	own := &machine.Own{Table: a.table, Close: a.registry.Close, Ending: a.client.Ending}
	safe.Go(func() { a.connect(own) })
	for sig := range signals {
		a.registry.Leave()
		kind := map[os.Signal]string{syscall.SIGUSR1: "halt", syscall.SIGUSR2: "poweroff", syscall.SIGPWR: "poweroff"}[sig]
		if kind == "" {
			kind = "reboot"
		}
		safe.Go(func() { own.Down(kind, "guest", machine.GuestGrace) })
	}
}

// surviveSignals catches what would end a Go program: the kernel protects PID 1 only from signals it has no handler for, and
// Go's runtime has one for each.
func surviveSignals() {
	nowhere := make(chan os.Signal, 1)
	for sig := syscall.SIGHUP; sig <= syscall.SIGSYS; sig++ {
		if sig != syscall.SIGCHLD && sig != syscall.SIGURG { // the reaper's; the runtime's own
			signal.Notify(nowhere, sig)
		}
	}
}

// service runs beside the image's own init, until that stops it. On SIGTERM it looks whether the machine goes down; SIGUSR1
// says so.
func service() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	params := machine.ReadParams()
	left := takeover.Left()
	nameHost(params, left) // the init has set that of /etc/hostname
	a := newAgent(params, left, false)
	a.table.Spare()
	served := &machine.Served{Table: a.table, Ending: a.client.Ending, End: a.registry.End}
	safe.Go(func() { a.connect(served) })
	kind := "down"
	sig := <-signals
	a.registry.Leave()
	if sig == syscall.SIGTERM {
		kind = machine.SystemdKind(a.table)
	}
	if kind != "" {
		served.Leave(kind, machine.GuestGrace)
	}
}

func nameHost(params machine.Params, left *takeover.State) {
	if left != nil {
		return
	}
	if err := machine.SetHostname(params.Hostname); err != nil {
		safe.Logf("cannot set the host name: %v", err)
	}
}

// agent is what serves the host, whatever its place in the machine.
type agent struct {
	params   machine.Params
	id       string // outlives a change of the program
	table    *proc.Table
	registry *execs.Registry
	client   *egress.Client
	ports    *channel.Ports
}

// newAgent goes on with what the program before has left. As PID 1 it takes all orphans.
func newAgent(params machine.Params, left *takeover.State, all bool) *agent {
	a := &agent{params: params, id: facts.NewID(), ports: channel.NewPorts(nil)}
	if left != nil && left.AgentID != "" {
		a.id, a.ports = left.AgentID, channel.NewPorts(left.Served)
	}
	a.table, a.registry = left.Commands(all)
	a.client = &egress.Client{Facts: func() wire.Facts {
		f := facts.Gather(a.id)
		for _, problem := range disks.Problems(params.Mounts) {
			f.Problems = append(f.Problems, facts.Clean(problem))
		}
		return f
	}}
	return a
}

// connect serves the channels for ever. A transport that is not there yet, because its module is loaded later by the image,
// is tried again.
func (a *agent) connect(system control.System) {
	next := &takeover.Agent{Program: program, ID: a.id, Execs: a.registry, Table: a.table, Available: facts.Available, Served: a.ports.Served}
	server := &control.Server{Execs: a.registry, Facts: a.client.Facts, System: system, Successor: next}
	streams := channel.Server{Control: server.Serve, Ports: a.ports, Egress: func(c net.Conn) {
		if err := a.client.Use(c); err != nil {
			safe.Logf("the bell was not answered: %v", err)
		}
	}}
	said := ""
	for ; ; time.Sleep(500 * time.Millisecond) {
		err := channel.Serve(a.params.Transport, streams, a.client)
		if text := err.Error(); text != said {
			said = text
			safe.Logf("cannot reach the host: %s", text)
		}
	}
}
