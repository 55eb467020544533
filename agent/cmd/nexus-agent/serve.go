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
	if err := machine.MountEarly(); err != nil {
		safe.Logf("%v", err)
	}
	machine.MountGroups()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles, Max: maxFiles}); err != nil {
		safe.Logf("cannot raise the limit of open files: %v", err)
	}
	params := machine.ReadParams()
	if err := machine.SetHostname(params.Hostname); err != nil {
		safe.Logf("cannot set the host name: %v", err)
	}

	table := proc.NewTable(true)
	client, registry := newClient(params), execs.NewRegistry(table)
	own := &machine.Own{Table: table, Close: registry.Close, Ending: client.Ending}
	safe.Go(func() { connect(params, client, registry, own) })
	for sig := range signals {
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
	if err := machine.SetHostname(params.Hostname); err != nil { // the init has set that of /etc/hostname
		safe.Logf("cannot set the host name: %v", err)
	}
	table := proc.NewTable(false)
	client, registry := newClient(params), execs.NewRegistry(table)
	served := &machine.Served{Table: table, Ending: client.Ending, End: registry.End}
	safe.Go(func() { connect(params, client, registry, served) })
	kind := "down"
	if <-signals == syscall.SIGTERM {
		kind = machine.SystemdKind(table)
	}
	if kind != "" {
		served.Leave(kind, machine.GuestGrace)
	}
}

func newClient(params machine.Params) *egress.Client {
	id := facts.NewID()
	return &egress.Client{Facts: func() wire.Facts {
		f := facts.Gather(id)
		for _, problem := range disks.Problems(params.Mounts) {
			f.Problems = append(f.Problems, facts.Clean(problem))
		}
		return f
	}}
}

// connect serves the channels for ever. A transport that is not there yet, because its module is loaded later by the image,
// is tried again.
func connect(params machine.Params, client *egress.Client, registry *execs.Registry, system control.System) {
	server := &control.Server{Execs: registry, Facts: client.Facts, System: system}
	streams := channel.Server{Control: server.Serve, Egress: func(c net.Conn) {
		if err := client.Use(c); err != nil {
			safe.Logf("the bell was not answered: %v", err)
		}
	}}
	said := ""
	for ; ; time.Sleep(500 * time.Millisecond) {
		err := channel.Serve(params.Transport, streams, client)
		if text := err.Error(); text != said {
			said = text
			safe.Logf("cannot reach the host: %s", text)
		}
	}
}
