package machine

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// killWait is how long killed processes may take to be gone: one in the middle of a disk write needs its time.
const killWait = 2 * time.Second

// Own is a machine of which the agent is PID 1.
type Own struct {
	Table  *proc.Table
	Close  func()                // lets no further command start
	Ending func(kind, by string) // tells the host

	once sync.Once
}

// Settle sets clock, entropy and host name.
func (*Own) Settle(s wire.Settle) error { return Settle(s) }

// Clock is the time.
func (*Own) Clock() int64 { return Clock() }

// StepClock puts the clock forward or back.
func (*Own) StepClock(byUs int64) error { return StepClock(byUs) }

// Power takes the machine down because the host says so.
func (o *Own) Power(kind string, grace time.Duration) { o.Down(kind, "host", grace) }

// Grow grows the file system on a disk.
func (*Own) Grow(device string, size int64) (string, error) { return disks.GrowMounted(device, size) }

// Down ends what runs, puts the file systems to rest and resets the machine, whatever the kind: a VMM on x86 never sees a
// power-off. It does not return; a second call waits.
func (o *Own) Down(kind, by string, grace time.Duration) {
	o.once.Do(func() {
		defer Reset() // also after a panic
		defer safe.Recover()
		o.Close()
		o.Ending(kind, by)
		signalAll(syscall.SIGTERM)
		signalAll(syscall.SIGCONT)
		if !o.empty(grace) {
			signalAll(syscall.SIGKILL)
			if !o.empty(killWait) {
				safe.Logf("some processes do not end; going down all the same")
			}
		}
		rest()
	})
	select {}
}

// signalAll reaches every process but PID 1.
func signalAll(sig syscall.Signal) { _ = syscall.Kill(-1, sig) }

// empty waits until PID 1 has no child: every process is its descendant, and orphans become its children.
func (o *Own) empty(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if o.Table.Empty() {
			return true
		}
		if !time.Now().Before(deadline) {
			return false
		}
	}
}

// rest syncs, unmounts what can be unmounted and makes the root read-only.
func rest() {
	swapOff()
	unix.Sync()
	for pass := 0; pass < 3 && unmountAll() > 0; pass++ {
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		safe.Logf("cannot make the root read-only: %v", err)
		emergencyRemount()
	}
	unix.Sync()
}

// unmountAll unmounts from the newest to the oldest and says how many were left.
func unmountAll() int {
	points, left := mountPoints(), 0
	for i := len(points) - 1; i >= 0; i-- {
		p := points[i]
		if p == "/" || under(p, "/proc") || under(p, "/sys") || under(p, "/dev") {
			continue
		}
		if unix.Unmount(p, unix.UMOUNT_NOFOLLOW) != nil {
			left++
			_ = unix.Mount("", p, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
	return left
}

func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func swapOff() {
	text, _ := os.ReadFile("/proc/swaps")
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "/") {
			if path, err := unix.BytePtrFromString(disks.Unescape(f[0])); err == nil {
				swapoff(path)
			}
		}
	}
}

// emergencyRemount lets the kernel make every file system read-only by force; it does so in the background.
func emergencyRemount() {
	if os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0) == nil {
		time.Sleep(300 * time.Millisecond)
	}
}

// Reset ends the machine at once. It does not return.
func Reset() {
	drainConsole()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0)
	select {}
}
