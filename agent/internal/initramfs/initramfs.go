// Package initramfs is /init: it makes the machine able to run its root file system and becomes that root's PID 1.
package initramfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/account"
	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/machine"
	"github.com/workfort/nexus/agent/internal/safe"
)

const (
	newroot    = "/newroot"
	modulesDir = "/lib/modules/"
	loadList   = modulesDir + "nexus.load"
	rootWait   = 10 * time.Second
)

// Run does not return: it becomes PID 1 of the root, or says why it cannot and resets the machine.
func Run() {
	defer machine.Reset()
	defer safe.Recover()
	safe.Logf("%v", boot())
	safe.Within(2*time.Second, unix.Sync) // the root may be mounted already
}

func boot() error {
	if err := machine.MountEarly(); err != nil {
		return err
	}
	p := machine.ReadParams()
	if err := loadModules(); err != nil {
		return err
	}
	if err := waitFor(p.Root); err != nil {
		return err
	}
	if err := unix.Mount(p.Root, newroot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("cannot mount the root %s as ext4: %w", p.Root, err)
	}
	disks.Settle(p.Root, newroot)
	if err := switchRoot(); err != nil {
		return err
	}
	disks.MountAll(p.Mounts)
	if err := machine.LoopbackUp(); err != nil {
		safe.Logf("cannot bring lo up: %v", err)
	}
	if err := machine.NameImage(p); err != nil {
		safe.Logf("cannot write into the image's label: %v", err)
	}
	if err := machine.SetHostname(p.Hostname); err != nil {
		return fmt.Errorf("cannot set the host name: %w", err)
	}
	return become(p.Init)
}

func become(kind string) error {
	program := "/usr/lib/nexus/nexus-agent"
	if kind == "image" {
		program = "/sbin/init"
	} else if kind != "agent" {
		return fmt.Errorf("nexus.init=%s is neither agent nor image", kind)
	}
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "TERM": "linux"}
	for name, value := range account.ImageEnvironment("") {
		env[name] = value
	}
	var list []string
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	err := syscall.Exec(program, []string{program}, list)
	return fmt.Errorf("cannot run %s of the root: %w", program, err)
}

func loadModules() error {
	list, err := os.ReadFile(loadList)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the kernel has all it needs built in
	}
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(modulesDir, path)
		}
		if err := loadModule(path); err != nil {
			return fmt.Errorf("cannot load module %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

func loadModule(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FinitModule(fd, "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// waitFor polls: a probed driver takes a few milliseconds to make its device.
func waitFor(dev string) error {
	for deadline := time.Now().Add(rootWait); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(dev); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the root device %s did not appear within %v", dev, rootWait)
		}
	}
}

// switchRoot moves into the mounted root. The kernel's modules stay reachable: they are bound from the initramfs, which is a
// tmpfs, and everything else in it is removed.
func switchRoot() error {
	modules, release := openModules()
	if modules >= 0 {
		defer unix.Close(modules)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		_ = os.Mkdir(newroot+dir, 0o755)
		if err := unix.Mount(dir, newroot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("cannot move %s into the root: %w", dir, err)
		}
	}
	if err := os.Chdir(newroot); err != nil {
		return err
	}
	keep := ""
	if modules >= 0 {
		keep = modulesDir + release
	}
	empty("/", keep)
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if modules >= 0 {
		if err := bindModules(modules, release); err != nil {
			safe.Logf("cannot offer the kernel's modules to the root: %v", err)
		}
	}
	return nil
}

// openModules opens the initramfs' module tree; -1 if there is none for this kernel.
func openModules() (int, string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return -1, ""
	}
	release := unix.ByteSliceToString(u.Release[:])
	fd, err := unix.Open(modulesDir+release, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, ""
	}
	return fd, release
}

// bindModules runs inside the root, so that links in it lead nowhere else.
func bindModules(fd int, release string) error {
	dir := modulesDir + release
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), dir, "", unix.MS_BIND, "")
}

// empty frees the initramfs: everything on its own file system but the tree at keep.
func empty(dir, keep string) {
	var here unix.Stat_t
	if unix.Lstat(dir, &here) != nil {
		return
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Dev != here.Dev || path == keep {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			empty(path, keep)
		}
		_ = os.Remove(path)
	}
}
