// Package execs runs commands: it starts them, keeps what they write in rings that readers attach to, and tells how they
// ended.
//
// INVARIANTS
//   - A byte enters a ring once and leaves it only when it is the oldest and no reader still needs it: none that is attached,
//     none that went away before the end and less than `hold` ago. Such a one needs what may not have arrived, too.
//   - The pump of a channel waits for these readers, and for no other. That of a terminal waits for a reader that takes nothing
//     for `hold` at most: then the reader is behind, and is told of a gap when it takes again.
//   - `finished` is set once, after the exit status and after the last byte; nothing is appended later.
//   - Whoever holds Exec.mu blocks on nothing but Exec.cond.
package execs

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
)

// lingering is how long pipes that a grandchild holds are read after the command's own end.
const lingering = 200 * time.Millisecond

// Exit is how a command ended.
type Exit struct {
	Code     int
	Signal   syscall.Signal // 0 if it exited
	TimedOut bool
	Duration time.Duration
}

// Exec is one command.
type Exec struct {
	ID  string
	Pid int

	table *proc.Table
	child *proc.Child
	kill  bool          // on_disconnect
	delay time.Duration // until then
	hold  time.Duration // for a reader that went away
	// killAt is the end of its timeout; zero: none.
	killAt time.Time
	adrift *adrift

	mu       sync.Mutex
	cond     *sync.Cond
	rings    [2]ring     // stdout, stderr
	outs     [2]*os.File // what its pumps read; nil: at its end. A terminal has one
	frozen   bool
	parked   [2]bool
	pending  [2][]byte // of a pump that is parked: read, and not in the ring yet
	readers  map[*Reader]struct{}
	gone     map[*Reader]struct{} // went away before the end, and are waited for
	serial   int
	exit     *Exit
	finished bool
	timedOut bool
	stdin    *os.File // nil once taken or closed
	orphan   *time.Timer
	tty      *terminal // nil: pipes
	spare    bool      // it ended long enough ago: what was kept for readers alone is given back when there are none
	bare     bool      // no output is kept for those who come later

	// What a list says of it.
	command string
	session string
}

// supervise follows the command to its end. It returns when finished is set.
func (e *Exec) supervise(stdin *os.File) {
	if !e.killAt.IsZero() {
		t := time.AfterFunc(time.Until(e.killAt), func() {
			defer safe.Recover()
			e.mu.Lock()
			defer e.mu.Unlock()
			e.timedOut = e.table.Signal(e.child, syscall.SIGKILL)
		})
		defer t.Stop()
	}
	var pumps sync.WaitGroup
	out := e.pumped()
	for i, f := range out {
		if f != nil {
			pumps.Add(1)
			safe.Go(func() { e.pump(i, f, pumps.Done) })
		}
	}
	<-e.child.Done
	e.mu.Lock()
	e.exit = exitOf(e.child, e.timedOut)
	if e.orphan != nil {
		e.orphan.Stop()
	}
	e.mu.Unlock()
	if stdin != nil {
		stdin.Close() // also ends a writer that waits
	}
	for _, f := range out {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(lingering))
		}
	}
	pumps.Wait()
	if e.tty != nil {
		e.tty.close()
	}
	e.mu.Lock()
	e.finished = true
	e.cond.Broadcast()
	e.mu.Unlock()
}

func (e *Exec) pumped() [2]*os.File {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.outs
}

func exitOf(c *proc.Child, timedOut bool) *Exit {
	x := &Exit{TimedOut: timedOut, Duration: c.Ended.Sub(c.Started)}
	if c.Status.Signaled() {
		x.Signal = c.Status.Signal()
	} else {
		x.Code = c.Status.ExitStatus()
	}
	return x
}

// pump moves a pipe into its ring until its end, or until the lingering is over: then it takes what is in the pipe at that
// moment, reports the end, and goes on to read into nothing, so that a grandchild that writes does not die of SIGPIPE.
func (e *Exec) pump(i int, f *os.File, done func()) {
	defer f.Close()
	ended := false
	end := func() {
		if !ended {
			ended = true
			e.leave(i)
			done()
		}
	}
	defer end()
	e.append(i, e.inHand(i))
	for {
		err := e.read(i, f, chunkSize, func(p []byte) { e.append(i, p) })
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = f.SetReadDeadline(time.Time{})
			e.drain(i, f)
			e.adrift.add(f)
			end()
			e.adrift.read(f)
			return
		}
		if err != nil {
			return
		}
	}
}

// inHand is what the pump of the program before had read.
func (e *Exec) inHand(i int) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pending[i]
	e.pending[i] = nil
	return p
}

// leave says that no pump reads the channel any more.
func (e *Exec) leave(i int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.outs[i] = nil
	e.cond.Broadcast()
}

// drain reads what the pipe holds now. All that the command itself wrote is in it.
func (e *Exec) drain(i int, f *os.File) {
	left := 0
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	for left > 0 {
		err := e.read(i, f, left, func(p []byte) {
			e.append(i, p)
			left -= len(p)
		})
		if err != nil {
			return
		}
	}
}

func (e *Exec) append(i int, p []byte) {
	if len(p) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(p) > 0 {
		if e.frozen {
			e.park(i, p)
		}
		room := e.room(i)
		if room == 0 {
			if e.tty != nil {
				e.overtake(i)
			} else {
				e.cond.Wait()
			}
			continue
		}
		n := min(len(p), room)
		e.rings[i].append(p[:n])
		p = p[n:]
		e.cond.Broadcast()
	}
}

// room is how many bytes the ring takes without dropping one that a reader needs.
func (e *Exec) room(i int) int {
	room := ringSize
	for _, readers := range []map[*Reader]struct{}{e.readers, e.gone} {
		for r := range readers {
			if !r.behind {
				room = min(room, ringSize-int(e.rings[i].end-r.need(i)))
			}
		}
	}
	return room
}

// trim gives back what was kept for readers that came back; whoever comes later finds as much as an unread command keeps, or
// of a bare one how it ended.
func (e *Exec) trim(bare bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spare, e.bare = true, e.bare || bare
	e.giveBack()
}

// giveBack is the trim that is due, once there are no readers. The lock is held.
func (e *Exec) giveBack() {
	if !e.spare || len(e.readers)+len(e.gone) > 0 {
		return
	}
	keep := unread
	if e.bare {
		keep = 0
	}
	for i := range e.rings {
		e.rings[i].trim(keep)
	}
}

// watched says whether it has readers, or some that may come back.
func (e *Exec) watched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.readers)+len(e.gone) > 0
}

// Signal sends sig to the process group; false if the command has ended.
func (e *Exec) Signal(sig syscall.Signal) bool { return e.table.Signal(e.child, sig) }

// Running says whether the command itself has not ended.
func (e *Exec) Running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.exit == nil
}

// TakeStdin hands the standard input to its one writer; nil if there is none or it is taken.
func (e *Exec) TakeStdin() *os.File {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.stdin
	e.stdin = nil
	return f
}
