// nexus-agent is the guest's side of the channel. It is the initramfs' /init, PID 1 of a root without an init of its own, or
// a service of the image's init.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/workfort/nexus/agent/internal/initramfs"
	"github.com/workfort/nexus/agent/internal/machine"
	"github.com/workfort/nexus/agent/internal/takeover"
	"github.com/workfort/nexus/agent/internal/wire"
)

// program is the name by which another agent knows this one for its successor.
const program = "nexus-agent"

func main() {
	if os.Getpid() == 1 {
		// By its path: a root may have a folder of that name.
		if info, err := os.Stat("/newroot"); os.Args[0] == "/init" && err == nil && info.IsDir() {
			initramfs.Run()
		}
		pid1()
	}
	verb := filepath.Base(os.Args[0])                  // the agent may be linked as /sbin/reboot
	if verb == "nexus-shutdown" && len(os.Args) == 2 { // in systemd's system-shutdown
		machine.SystemdLast(os.Args[1])
		return
	}
	if _, ok := askPid1[verb]; !ok && len(os.Args) == 2 {
		verb = os.Args[1]
	}
	sig, ok := askPid1[verb]
	switch {
	case ok:
		if err := syscall.Kill(1, sig); err != nil {
			fmt.Fprintf(os.Stderr, "nexus: cannot %s: %v\n", verb, err)
			os.Exit(1)
		}
	case verb == "version":
		fmt.Println(wire.Version)
	case verb == takeover.Verb:
		takeover.Claim(program)
	case verb == "service":
		service()
	case verb == "ending":
		machine.TellService()
	case verb == "last":
		machine.Last()
	default:
		fmt.Fprintln(os.Stderr, "usage: nexus-agent service | ending | last | version | reboot | poweroff | halt")
		os.Exit(2)
	}
}

// askPid1 has the signals that the agent as PID 1 understands, as BusyBox's init does.
var askPid1 = map[string]syscall.Signal{
	"reboot":   syscall.SIGTERM,
	"halt":     syscall.SIGUSR1,
	"poweroff": syscall.SIGUSR2,
}
