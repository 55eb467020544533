package machine

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// Served is a machine that has its own init; the agent is one of its services.
type Served struct {
	Table  *proc.Table
	Ending func(kind, by string)     // tells the host
	End    func(grace time.Duration) // ends the commands and lets no further one start

	asked, told sync.Once
	grace       atomic.Int64 // ns; that of the host, if the host has asked
}

// Settle sets clock, entropy and host name.
func (*Served) Settle(s wire.Settle) error { return Settle(s) }

// Grow grows the file system on a disk.
func (*Served) Grow(device string, size int64) (string, error) {
	return disks.GrowMounted(device, size)
}

// Clock is the time.
func (*Served) Clock() int64 { return Clock() }

// StepClock puts the clock forward or back.
func (*Served) StepClock(byUs int64) error { return StepClock(byUs) }

// Power asks the image's init for a reboot, never a power-off, which a VMM on x86 would not see. The grace is that of the
// commands; the init takes its own time.
func (s *Served) Power(kind string, grace time.Duration) {
	s.asked.Do(func() {
		s.grace.Store(int64(max(grace, 1)))
		s.told.Do(func() { s.Ending(kind, "host") })
		for _, path := range []string{"/sbin/reboot", "/usr/sbin/reboot", "/bin/reboot", "/usr/bin/reboot"} {
			if s.run(path) {
				return
			}
		}
		safe.Logf("no program of the image reboots the machine; asking PID 1")
		_ = syscall.Kill(1, syscall.SIGTERM) // BusyBox's init reboots on it
	})
}

// Leave is called when the init stops the agent because the machine goes down.
func (s *Served) Leave(kind string, grace time.Duration) {
	s.told.Do(func() { s.Ending(kind, "guest") })
	if asked := time.Duration(s.grace.Load()); asked > 0 {
		grace = asked
	}
	s.End(grace)
}

func (s *Served) run(path string) bool {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer null.Close()
	return run(s.Table, path, nil, null)
}

// run runs a program to its end; out takes what it writes.
func run(table *proc.Table, path string, args []string, out *os.File) bool {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true},
		Files: []uintptr{null.Fd(), out.Fd(), null.Fd()}}
	argv := append([]string{strings.TrimPrefix(path[strings.LastIndex(path, "/"):], "/")}, args...)
	child, err := table.Start(path, argv, attr)
	if err != nil {
		return false
	}
	<-child.Done
	return child.Status.Exited() && child.Status.ExitStatus() == 0
}
