package execs

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// ErrNoTty says that a command has no terminal, or none any more.
var ErrNoTty = errors.New("the command has no terminal, or has ended")

// ttyGroup is the group of terminals that write(1) and its like may write to; every distribution has it under this number.
const ttyGroup = 5

// terminal is our end of a pseudoterminal. Each writer has a descriptor of its own, so that one that waits can be ended alone.
type terminal struct {
	mu     sync.Mutex
	master *os.File // nil: the command has ended
	inputs map[*os.File]struct{}
}

// openTerminal makes a pseudoterminal. The command gets the one end as all three standard streams; the pipes' stdout is the
// other.
func openTerminal(size wire.Size, uid uint32, own bool) (p *pipes, t *terminal, err error) {
	p = &pipes{theirs: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			p.closeChild()
			p.closeOurs()
			if t != nil {
				t.close()
			}
		}
	}()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return p, nil, err
	}
	p.stdout = os.NewFile(uintptr(fd), "ptmx")
	second, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return p, nil, err
	}
	t = &terminal{master: os.NewFile(uintptr(second), "ptmx"), inputs: map[*os.File]struct{}{}}
	nr, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return p, t, err
	}
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return p, t, err
	}
	if err = t.resize(size); err != nil {
		return p, t, err
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(nr), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return p, t, err
	}
	p.theirs[0] = slave
	if own {
		_ = unix.Fchown(slave, int(uid), ttyGroup)
		_ = unix.Fchmod(slave, 0o620)
	}
	for i := 1; i < 3; i++ {
		if p.theirs[i], err = unix.FcntlInt(uintptr(slave), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return p, t, err
		}
	}
	return p, t, nil
}

// resize sets the size. The programs in front hear of it even where it is the old one: whoever has just come wants the
// screen drawn anew.
func (t *terminal) resize(size wire.Size) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.master == nil {
		return ErrNoTty
	}
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		want := unix.Winsize{Col: uint16(size.Cols), Row: uint16(size.Rows)}
		had, _ := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ)
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &want)
		if had != nil && had.Col == want.Col && had.Row == want.Row {
			if group, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil && group > 1 {
				_ = syscall.Kill(-group, syscall.SIGWINCH)
			}
		}
	})
	return errors.Join(err, failed)
}

// input opens a way in. It is closed by done, or at the command's end.
func (t *terminal) input() (in *os.File, done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.master == nil {
		return nil, nil, ErrNoTty
	}
	raw, err := t.master.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	fd := -1
	var failed error
	if err := raw.Control(func(m uintptr) { fd, failed = unix.FcntlInt(m, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || failed != nil {
		return nil, nil, errors.Join(err, failed)
	}
	in = os.NewFile(uintptr(fd), "ptmx")
	t.inputs[in] = struct{}{}
	return in, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.inputs, in)
		in.Close()
	}, nil
}

// close is called at the command's end; it ends the writers.
func (t *terminal) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.master == nil {
		return
	}
	t.master.Close()
	t.master = nil
	for in := range t.inputs {
		in.Close()
	}
}

// Resize sets the size of the command's terminal.
func (e *Exec) Resize(size wire.Size) error {
	if e.tty == nil {
		return ErrNoTty
	}
	return e.tty.resize(size)
}

// HasTerminal says whether the command was given one.
func (e *Exec) HasTerminal() bool { return e.tty != nil }

// Input opens a way to the command's terminal, for one of several writers.
func (e *Exec) Input() (*os.File, func(), error) {
	if e.tty == nil {
		return nil, nil, ErrNoTty
	}
	return e.tty.input()
}

// overtake waits for a reader to take something, for a while; then those that stand in the way and took nothing meanwhile are
// behind. The lock is held.
func (e *Exec) overtake(i int) {
	alarm := time.AfterFunc(e.hold, func() {
		defer safe.Recover()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.cond.Broadcast()
	})
	defer alarm.Stop()
	for since := time.Now(); e.room(i) == 0; {
		e.cond.Wait()
		if e.frozen {
			return
		}
		if time.Since(since) < e.hold {
			continue
		}
		for r := range e.readers {
			if time.Since(r.moved) >= e.hold {
				r.behind = true
			}
		}
		return
	}
}
