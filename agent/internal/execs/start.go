package execs

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/account"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// whoRuns finds the user; asRoot says that the agent can and must take on that user's rights.
func whoRuns(name string) (account.User, bool, *Failure) {
	me := os.Geteuid()
	if name == "" {
		name = strconv.Itoa(me) // root, but for an agent that is no root itself
	}
	who, err := account.Lookup("", name)
	if err != nil {
		return who, false, failure("no_user", "Cannot find user '"+name+"': "+err.Error()+".")
	}
	if me != 0 && int(who.UID) != me {
		return who, false, failure("no_permission", "Cannot become user '"+name+"': the agent does not run as root.")
	}
	return who, me == 0, nil
}

type spot struct{ dir, program string }

// place finds the working directory and the program with the rights of the user, so that each failure has its own name:
// a fork and exec that fails says no more than an errno.
func place(spec wire.Spec, who account.User, asRoot bool, env []string) (at spot, fail *Failure) {
	look := func() { at, fail = find(spec, who, env) }
	if !asRoot || who.UID == 0 {
		look()
		return at, fail
	}
	done := make(chan *Failure, 1)
	safe.Go(func() {
		var broken *Failure = &Failure{500, "internal", "the agent failed to look for the program"}
		defer func() { done <- broken }()
		if err := withRightsOf(who, look); err != nil {
			broken = failure("spawn", "Cannot take on the rights of the user: "+err.Error())
		} else {
			broken = nil
		}
	})
	if broken := <-done; broken != nil {
		return at, broken
	}
	return at, fail
}

// withRightsOf runs f on a thread whose file system rights are the user's. A thread that cannot get its own rights back
// stays locked and ends with the goroutine.
func withRightsOf(who account.User, f func()) error {
	runtime.LockOSThread()
	before, err := unix.Getgroups()
	if err != nil {
		return err
	}
	if err := threadGroups(who.Groups); err != nil {
		return err
	}
	_ = unix.Setfsgid(int(who.GID))
	_ = unix.Setfsuid(int(who.UID)) // drops the thread's file system capabilities, too
	f()
	_ = unix.Setfsuid(0)
	_ = unix.Setfsgid(0)
	uid, _ := unix.SetfsuidRetUid(-1) // an invalid number changes nothing and tells the present one
	gid, _ := unix.SetfsgidRetGid(-1)
	old := make([]uint32, len(before))
	for i, g := range before {
		old[i] = uint32(g)
	}
	if uid == 0 && gid == 0 && threadGroups(old) == nil {
		runtime.UnlockOSThread()
	}
	return nil
}

// threadGroups is setgroups for this thread alone; syscall.Setgroups would change all.
func threadGroups(groups []uint32) error {
	var at *uint32
	if len(groups) > 0 {
		at = &groups[0]
	}
	return setgroups(len(groups), at)
}

func find(spec wire.Spec, who account.User, env []string) (spot, *Failure) {
	dir := spec.Cwd
	if dir == "" {
		dir = who.Home
		if enter(dir) != nil {
			dir = "/"
		}
	}
	if !strings.HasPrefix(dir, "/") {
		return spot{}, failure("no_cwd", "Cannot start in '"+dir+"': the path is not absolute.")
	}
	if err := enter(dir); err != nil {
		return spot{}, failure("no_cwd", "Cannot start in '"+dir+"': "+err.Error()+".")
	}
	program, fail := findProgram(spec.Argv[0], dir, env)
	return spot{dir, program}, fail
}

func enter(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return reason(err)
	}
	if !info.IsDir() {
		return syscall.ENOTDIR
	}
	return reason(unix.Faccessat(unix.AT_FDCWD, dir, unix.X_OK, unix.AT_EACCESS))
}

// findProgram looks for the program as execvp(3) does, in the PATH that the command itself gets.
func findProgram(name, dir string, env []string) (string, *Failure) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, p := range filepath.SplitList(variable(env, "PATH")) {
			candidates = append(candidates, filepath.Join(dirOr(p), name))
		}
	}
	denied := ""
	for _, c := range candidates {
		abs := c
		if !filepath.IsAbs(c) {
			abs = filepath.Join(dir, c)
		}
		info, err := os.Stat(abs)
		if err == nil && info.Mode().IsRegular() && unix.Faccessat(unix.AT_FDCWD, abs, unix.X_OK, unix.AT_EACCESS) == nil {
			return abs, nil
		}
		if err == nil || errors.Is(err, os.ErrPermission) {
			denied = abs
		}
	}
	if denied != "" {
		return "", failure("no_permission", "Cannot run '"+name+"': '"+denied+"' is not executable for this user.")
	}
	return "", failure("no_program", "Cannot run '"+name+"': no such program.")
}

func dirOr(p string) string {
	if p == "" {
		return "."
	}
	return p
}

func variable(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func reason(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

func spawnFailure(err error, program string) *Failure {
	detail := "Cannot run '" + program + "': " + err.Error() + "."
	switch reason(err) {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP:
		return failure("no_program", "Cannot run '"+program+"': its interpreter or loader is missing.")
	case syscall.EACCES, syscall.EPERM:
		return failure("no_permission", detail)
	case syscall.E2BIG:
		return failure("too_big", "Cannot run '"+program+"': argv and env are too big.")
	}
	return failure("spawn", detail)
}

// pipes are the three standard streams: ours non-blocking, the command's as it expects them.
type pipes struct {
	stdin          *os.File // nil: /dev/null
	stdout, stderr *os.File
	theirs         [3]int
}

func openPipes(stdin bool, uid uint32, own bool) (p *pipes, err error) {
	p = &pipes{theirs: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			p.closeChild()
			p.closeOurs()
		}
	}()
	if stdin {
		if p.stdin, p.theirs[0], err = pipe(1, uid, own); err != nil {
			return p, err
		}
	} else if p.theirs[0], err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return p, err
	}
	if p.stdout, p.theirs[1], err = pipe(0, uid, own); err != nil {
		return p, err
	}
	p.stderr, p.theirs[2], err = pipe(0, uid, own)
	return p, err
}

// pipe makes a pipe of which the agent keeps end ours (0 reads, 1 writes). It belongs to the user, who may open
// /dev/stdout again.
func pipe(ours int, uid uint32, own bool) (*os.File, int, error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	if own {
		_ = unix.Fchown(fd[0], int(uid), -1)
	}
	if err := unix.SetNonblock(fd[ours], true); err != nil {
		unix.Close(fd[0])
		unix.Close(fd[1])
		return nil, -1, err
	}
	return os.NewFile(uintptr(fd[ours]), "pipe"), fd[1-ours], nil
}

func (p *pipes) child() []uintptr {
	return []uintptr{uintptr(p.theirs[0]), uintptr(p.theirs[1]), uintptr(p.theirs[2])}
}

func (p *pipes) closeChild() {
	for i, fd := range p.theirs {
		if fd >= 0 {
			unix.Close(fd)
			p.theirs[i] = -1
		}
	}
}

func (p *pipes) closeOurs() {
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			f.Close()
		}
	}
}
