package machine

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// Served is a machine that has its own init; the agent is one of its services.
type Served struct {
	Table  *proc.Table
	Ending func(kind, by string)

	once sync.Once
}

// Settle sets clock, entropy and host name.
func (*Served) Settle(s wire.Settle) error { return Settle(s) }

// Power asks the image's init for a reboot, never a power-off, which a VMM on x86 would not see. The grace is the init's own.
func (s *Served) Power(kind string, _ time.Duration) {
	s.once.Do(func() {
		s.Ending(kind, "host")
		for _, path := range []string{"/sbin/reboot", "/usr/sbin/reboot", "/bin/reboot", "/usr/bin/reboot"} {
			if s.run(path) {
				return
			}
		}
		safe.Logf("no program of the image reboots the machine; asking PID 1")
		_ = syscall.Kill(1, syscall.SIGTERM) // BusyBox's init reboots on it
	})
}

func (s *Served) run(path string) bool {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}}
	child, err := s.Table.Start(path, []string{strings.TrimPrefix(path[strings.LastIndex(path, "/"):], "/")}, attr)
	if err != nil {
		return false
	}
	<-child.Done
	return child.Status.ExitStatus() == 0
}
