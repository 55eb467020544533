package execs

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/workfort/nexus/agent/internal/safe"
)

// freezeWithin is how long the pumps may take to stand still: they wait for nothing but their turn.
const freezeWithin = 5 * time.Second

// ErrMoving says that the commands could not be made to stand still.
var ErrMoving = errors.New("a command is just being started, or the machine is going down")

// Frozen are commands of which the agent moves no byte and hears nothing until Thaw. They run on meanwhile: their pipes fill.
//
// INVARIANT: while it is there, the locks of the registry, of each of its commands, of the table and of what is adrift are held, taken in
// this order.
type Frozen struct {
	g     *Registry
	execs []*Exec
	thaw  []func()
	kept  []*os.File // inherited by the next program
}

// Freeze makes all commands stand still. What a pump has read and its ring has no room for is in `pending`.
func (g *Registry) Freeze() (*Frozen, error) {
	f := &Frozen{g: g}
	f.lock(&g.mu)
	if g.closed {
		f.Thaw()
		return nil, ErrMoving
	}
	for _, en := range g.known {
		select {
		case <-en.ready:
		default:
			f.Thaw()
			return nil, ErrMoving
		}
		if en.exec != nil {
			f.execs = append(f.execs, en.exec)
		}
	}
	limit := time.Now().Add(freezeWithin)
	for _, e := range f.execs {
		still := e.freeze(limit)
		f.thaw = append(f.thaw, e.thaw)
		if !still {
			f.Thaw()
			return nil, errors.New("the output of command " + e.ID + " does not stand still")
		}
	}
	f.thaw = append(f.thaw, g.table.Freeze())
	f.lock(&g.adrift.mu)
	return f, nil
}

func (f *Frozen) lock(mu *sync.Mutex) {
	mu.Lock()
	f.thaw = append(f.thaw, mu.Unlock)
}

// Thaw lets everything go on as if nothing had been.
func (f *Frozen) Thaw() {
	for _, file := range f.kept {
		closeOnExec(file, true)
	}
	for i := len(f.thaw) - 1; i >= 0; i-- {
		f.thaw[i]()
	}
	f.thaw, f.kept = nil, nil
}

// freeze returns with the lock held, whatever it says: thaw gives it back. False: a pump is somewhere else still.
func (e *Exec) freeze(limit time.Time) bool {
	e.mu.Lock()
	e.frozen = true
	for _, f := range e.outs {
		if f != nil {
			_ = f.SetReadDeadline(time.Unix(1, 0))
		}
	}
	e.cond.Broadcast()
	alarm := time.AfterFunc(time.Until(limit), func() {
		defer safe.Recover()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.cond.Broadcast()
	})
	defer alarm.Stop()
	for !e.still() {
		if !time.Now().Before(limit) {
			return false
		}
		e.cond.Wait()
	}
	return true
}

func (e *Exec) still() bool {
	for i, f := range e.outs {
		if f != nil && !e.parked[i] {
			return false
		}
	}
	return true
}

func (e *Exec) thaw() {
	e.frozen = false
	for _, f := range e.outs {
		if f != nil {
			_ = f.SetReadDeadline(e.readUntil())
		}
	}
	e.cond.Broadcast()
	e.mu.Unlock()
}

// readUntil is when a pump that waits looks up: never, or soon after the command's own end. The lock is held.
func (e *Exec) readUntil() time.Time {
	if e.exit == nil {
		return time.Time{}
	}
	return time.Now().Add(lingering)
}

// park keeps a pump still while the command is frozen, with what it has in hand. The lock is held.
func (e *Exec) park(i int, p []byte) {
	e.parked[i], e.pending[i] = true, p
	e.cond.Broadcast()
	for e.frozen {
		e.cond.Wait()
	}
	e.parked[i], e.pending[i] = false, nil
}

// read is take, but for the deadline that freezes.
func (e *Exec) read(i int, f *os.File, most int, use func([]byte)) error {
	for {
		err := take(f, most, use)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		e.mu.Lock()
		frozen := e.frozen
		if frozen {
			e.park(i, nil)
		}
		e.mu.Unlock()
		if !frozen {
			return err
		}
	}
}

// adrift are pipes of commands that have ended, held by others that write: they are read into nothing.
type adrift struct {
	mu    sync.Mutex
	files map[*os.File]struct{}
}

func (a *adrift) add(f *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files[f] = struct{}{}
}

// read forgets what comes until the last writer has gone, and closes the file.
func (a *adrift) read(f *os.File) {
	a.add(f)
	defer a.remove(f)
	for take(f, chunkSize, func([]byte) {}) == nil {
	}
}

func (a *adrift) remove(f *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.files, f)
}
