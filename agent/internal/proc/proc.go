// Package proc starts processes and collects how they ended.
//
// INVARIANTS
//   - Nobody else in the agent waits for a child: os/exec is not used, so no status is ever taken from its owner.
//   - A child is in the table before its status can be looked at: fork and wait happen under the same lock.
//   - A process group gets a signal only while its leader is in the table, so never a stranger with a reused number.
package proc

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/safe"
)

// Child is a process that Start made.
type Child struct {
	Pid     int
	Started time.Time
	Done    chan struct{} // closed when Status and Ended are set
	Status  syscall.WaitStatus
	Ended   time.Time
}

// Table holds the children that have not been waited for.
type Table struct {
	mu       sync.Mutex
	children map[int]*Child
	all      bool
	spared   bool
	wake     chan os.Signal
}

// NewTable makes a table and its reaper, which runs until the process ends. With all it waits for every child, as
// PID 1 must for the orphans it inherits; without, only for those in the table. Known are children that the process had before it
// became this program.
func NewTable(all bool, known ...*Child) *Table {
	t := &Table{children: map[int]*Child{}, all: all, wake: make(chan os.Signal, 1)}
	for _, c := range known {
		select {
		case <-c.Done:
		default:
			t.children[c.Pid] = c
		}
	}
	t.wake <- syscall.SIGCHLD // of those that ended before nobody tells
	signal.Notify(t.wake, syscall.SIGCHLD)
	catchIgnored()
	safe.Go(func() {
		for range t.wake {
			t.reap()
		}
	})
	return t
}

// catchIgnored catches what the agent was told to ignore (nohup, a shell's background): a child would inherit it and be
// deaf to INT; what is caught is reset by exec.
func catchIgnored() {
	nowhere := make(chan os.Signal, 1)
	for sig := syscall.Signal(1); sig < 65; sig++ {
		if signal.Ignored(sig) {
			signal.Notify(nowhere, sig)
		}
	}
}

// oomScore is how likely the kernel takes a process when memory is short: 1000 first, -1000 never; proc(5).
const oomScore = "/proc/self/oom_score_adj"

func setOomScore(n string) error { return os.WriteFile(oomScore, []byte(n), 0) }

// Spare lets the kernel take any process before this one when memory is short; its children are as likely as others. PID 1 is never
// taken anyway.
func (t *Table) Spare() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spared = setOomScore("-900") == nil
}

// Start runs a program as the leader of a new session.
func (t *Table) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spared { // a child inherits it
		_ = setOomScore("0")
		defer setOomScore("-900")
	}
	c := &Child{Started: time.Now(), Done: make(chan struct{})}
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c.Pid = pid
	t.children[pid] = c
	return c, nil
}

// Freeze holds everything as it is: nobody is started, signalled or waited for until it is thawed.
func (t *Table) Freeze() (thaw func()) {
	t.mu.Lock()
	return t.mu.Unlock
}

// Signal sends sig to the child's process group; false if the child has ended.
func (t *Table) Signal(c *Child, sig syscall.Signal) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.children[c.Pid] != c {
		return false
	}
	return syscall.Kill(-c.Pid, sig) == nil
}

// Empty says whether the process has no child left, its own or inherited.
func (t *Table) Empty() bool {
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == unix.ECHILD
}

func (t *Table) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all {
		for t.collect(-1) {
		}
		return
	}
	for pid := range t.children {
		t.collect(pid)
	}
}

// collect waits for one ended child without blocking. The lock is held.
func (t *Table) collect(which int) bool {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(which, &status, syscall.WNOHANG, nil)
	for err == syscall.EINTR {
		pid, err = syscall.Wait4(which, &status, syscall.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return false
	}
	if c := t.children[pid]; c != nil {
		delete(t.children, pid)
		c.Status, c.Ended = status, time.Now()
		close(c.Done)
	}
	return true
}
