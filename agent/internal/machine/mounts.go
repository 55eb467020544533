package machine

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/safe"
)

type mount struct {
	target, fstype string
	flags          uintptr
	data           string
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// early are the mounts that an initramfs needs and hands on to the root.
var early = []mount{
	{"/proc", "proc", quiet, ""},
	{"/sys", "sysfs", quiet, ""},
	{"/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
	{"/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
}

// devices go with /dev; BusyBox's init would not mount them.
var devices = []mount{
	{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
	{"/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
}

// groups are the agent's alone: an init of the image has its own mind about them.
var groups = mount{"/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate"}

// MountEarly mounts /proc, /sys, /dev with what belongs in it, and /run where they are not mounted, and takes the console for the
// standard streams.
func MountEarly() error {
	for _, m := range early {
		if err := m.ensure(); err != nil {
			return err
		}
	}
	if err := takeConsole(); err != nil {
		return err
	}
	for _, m := range devices {
		m.try()
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		_ = os.Symlink(target, "/dev/"+name)
	}
	return nil
}

// MountGroups mounts the control groups.
func MountGroups() { groups.try() }

// try mounts what a kernel may lack; that is said and no more.
func (m mount) try() {
	if err := m.ensure(); err != nil {
		safe.Logf("%v", err)
	}
}

func (m mount) ensure() error {
	for _, p := range mountPoints() {
		if p == m.target {
			return nil
		}
	}
	_ = os.Mkdir(m.target, 0o755)
	err := unix.Mount(m.fstype, m.target, m.fstype, m.flags, m.data)
	if err != nil && err != unix.EBUSY { // busy: mounted already, with /proc not there to tell
		return fmt.Errorf("cannot mount %s: %w", m.target, err)
	}
	return nil
}

// mountPoints are in the order of the mounts.
func mountPoints() []string {
	var points []string
	for _, m := range disks.All() {
		points = append(points, m.Point)
	}
	return points
}

// takeConsole makes /dev/console the standard streams, whatever they were, without taking it as controlling terminal.
func takeConsole() error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err == nil {
		for i := 0; i < 3; i++ {
			if fd != i {
				err = unix.Dup3(fd, i, 0)
			}
		}
		if fd > 2 {
			unix.Close(fd)
		}
	}
	if err == unix.ENODEV || err == unix.ENXIO || err == unix.EIO { // a machine without a console
		return nil
	}
	return err
}

// drainConsole waits until what was written is out of the machine, but not for a console that nobody reads.
func drainConsole() {
	safe.Flush(500 * time.Millisecond)
	safe.Within(500*time.Millisecond, func() {
		_ = unix.IoctlSetInt(2, unix.TCSBRK, 1) // tcdrain(3)
	})
}

// LoopbackUp brings lo up; the kernel adds its addresses.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
