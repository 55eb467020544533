package disks

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/safe"
)

// Mount is a disk that the host wants mounted: nexus.mount=vdb:/data or nexus.mount=vdb:/data:ro.
type Mount struct {
	Device   string // vdb
	Path     string
	ReadOnly bool
}

var deviceName = regexp.MustCompile(`^vd[a-z]$`)

// ErrNotMounted says that the guest has a disk mounted nowhere.
var ErrNotMounted = errors.New("the disk is not mounted")

const (
	// refusals keeps why disks could not be mounted, from /init of the initramfs to the agent, a line each: device, blank, why.
	refusals  = "/run/nexus/mounts"
	diskWait  = 2 * time.Second // for all: the root's own device is there
	resizeFor = 5 * time.Second
)

// ParseMount reads the value of nexus.mount.
func ParseMount(value string) (Mount, bool) {
	f := strings.Split(value, ":")
	ok := (len(f) == 2 || len(f) == 3 && f[2] == "ro") && deviceName.MatchString(f[0]) && filepath.IsAbs(f[1])
	if !ok {
		return Mount{}, false
	}
	return Mount{Device: f[0], Path: f[1], ReadOnly: len(f) == 3}, true
}

// MountAll mounts disks inside the root, which is / already, so that links in it lead nowhere else. What cannot be mounted is
// said, kept for the agent, and no reason not to boot.
func MountAll(mounts []Mount) {
	deadline := time.Now().Add(diskWait)
	var kept strings.Builder
	for _, m := range mounts {
		if err := m.mount(deadline); err != nil {
			safe.Logf("cannot mount /dev/%s on %s: %v", m.Device, m.Path, err)
			fmt.Fprintf(&kept, "%s %v\n", m.Device, err)
		}
	}
	if kept.Len() == 0 {
		return
	}
	_ = os.MkdirAll(filepath.Dir(refusals), 0o755)
	_ = os.WriteFile(refusals, []byte(kept.String()), 0o644)
}

func (m Mount) mount(deadline time.Time) error {
	dev := "/dev/" + m.Device
	for ; ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(dev); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("there is no such disk")
		}
	}
	if err := os.MkdirAll(m.Path, 0o755); err != nil {
		return err
	}
	if m.ReadOnly {
		return explain(unix.Mount(dev, m.Path, "ext4", unix.MS_RDONLY, ""))
	}
	if err := unix.Mount(dev, m.Path, "ext4", 0, ""); err != nil {
		return explain(err)
	}
	Settle(dev, m.Path)
	return nil
}

func explain(err error) error {
	if err == unix.EINVAL {
		return errors.New("it holds no ext4 file system")
	}
	if err == unix.EROFS || err == unix.EACCES {
		return errors.New("it was not unmounted and cannot be mended read-only")
	}
	return err
}

// Settle grows a writable ext4 to its device, and keeps its unused inode tables unwritten: growing would start a thread that
// fills them with zeros; they are zeros on a new disk, and would take room on the host. e2fsck knows unused ones by their checksum.
func Settle(dev, at string) {
	if err := Grow(dev, at); err != nil {
		safe.Logf("cannot grow the file system on %s: %v", dev, err) // smaller than wished, and usable
	}
	_ = unix.Mount("", at, "", unix.MS_REMOUNT, "noinit_itable")
}

// Problems says which of the disks are not mounted, and why.
func Problems(mounts []Mount) []string {
	if len(mounts) == 0 {
		return nil
	}
	why := map[string]string{}
	for _, line := range strings.Split(files.Small(refusals), "\n") {
		if device, text, ok := strings.Cut(line, " "); ok {
			why[device] = text
		}
	}
	var problems []string
	for _, m := range mounts {
		if _, err := find(m.Device, All()); err == nil {
			continue
		}
		text := why[m.Device]
		if text == "" {
			text = "it is mounted no more"
		}
		problems = append(problems, fmt.Sprintf("/dev/%s is not mounted on %s: %s", m.Device, m.Path, text))
	}
	return problems
}

// find gives the mount of a disk, the whole of its file system before a part of it.
func find(device string, all []Mounted) (Mounted, error) {
	var st unix.Stat_t
	if err := unix.Stat("/dev/"+device, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Mounted{}, fmt.Errorf("there is no disk /dev/%s", device)
	}
	id := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	part := -1
	for i, m := range all {
		if m.Device == id && m.Root == "/" {
			return m, nil
		}
		if m.Device == id {
			part = i
		}
	}
	if part >= 0 {
		return all[part], nil
	}
	return Mounted{}, ErrNotMounted
}

// GrowMounted waits until the kernel has seen that a disk is as long as that, and grows what is mounted from it. It gives the
// place where that is.
func GrowMounted(device string, size int64) (string, error) {
	if !deviceName.MatchString(device) {
		return "", fmt.Errorf("%q is no disk", device)
	}
	m, err := find(device, All())
	if err != nil {
		return "", err
	}
	dev := "/dev/" + device
	for deadline := time.Now().Add(resizeFor); ; time.Sleep(5 * time.Millisecond) {
		now, err := length(dev)
		if err != nil {
			return "", err
		}
		if now >= size {
			break
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("/dev/%s still has %d bytes", device, now)
		}
	}
	if m.Type != "ext4" {
		return "", fmt.Errorf("%s is %s, and only ext4 is grown", m.Point, m.Type)
	}
	if err := Grow(dev, m.Point); err != nil {
		return "", err
	}
	return m.Point, nil
}

func length(dev string) (int64, error) {
	f, err := os.Open(dev)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}
