package machine

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/safe"
)

const (
	// GuestGrace is how long processes have to end when the guest itself asked for its end.
	GuestGrace = 5 * time.Second
	// serviceWait covers the announcement and the end of the commands.
	serviceWait = GuestGrace + 2*time.Second
)

// TellService lets the agent that runs as a service tell the host that the machine goes down, and waits until it is gone.
func TellService() {
	agents := func() []int {
		return processes(func(args []string) bool {
			return len(args) == 2 && filepath.Base(args[0]) == "nexus-agent" && args[1] == "service"
		})
	}
	for _, pid := range agents() {
		_ = syscall.Kill(pid, syscall.SIGUSR1)
	}
	for deadline := time.Now().Add(serviceWait); len(agents()) > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
}

// Last puts the machine to rest as the last act of an init that runs such acts before it ends the processes: BusyBox's. What that
// was asked for it alone knows, so the rest is left to it: a reset ends the machine, after a halt or a power-off the host ends it.
func Last() {
	defer safe.Recover()
	_ = early[0].ensure() // an `umount -a` before this one may have taken /proc
	TellService()
	signalAll(syscall.SIGTERM)
	signalAll(syscall.SIGCONT)
	if !goneWithin(GuestGrace) {
		signalAll(syscall.SIGKILL)
		goneWithin(killWait)
	}
	rest()
}

func goneWithin(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if len(processes(func([]string) bool { return true })) == 0 {
			return true
		}
		if !time.Now().Before(deadline) {
			return false
		}
	}
}

// processes are those that fit, without PID 1, this one, the kernel's and the dead, which have no command line.
func processes(fits func(args []string) bool) []int {
	entries, _ := os.ReadDir("/proc")
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		line := strings.TrimSuffix(files.Small("/proc/"+e.Name()+"/cmdline"), "\x00")
		if line != "" && fits(strings.Split(line, "\x00")) {
			found = append(found, pid)
		}
	}
	return found
}
