package execs

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/mono"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
)

// ReadSaved reads what Save wrote. Every descriptor is closed on exec again.
func ReadSaved(r io.Reader) (*Saved, error) {
	dec := json.NewDecoder(r)
	s := &Saved{}
	if err := dec.Decode(s); err != nil {
		return nil, err
	}
	rest := io.MultiReader(dec.Buffered(), r)
	if _, err := io.ReadFull(rest, make([]byte, 1)); err != nil { // the newline
		return nil, err
	}
	for i := range s.Execs {
		x := &s.Execs[i]
		var k kept
		for c := range k.rings {
			if x.Lengths[c] < 0 || x.Lengths[c] > ringSize || x.Pending[c] < 0 || x.Pending[c] > ringSize {
				return nil, errors.New("a ring has an impossible length")
			}
			k.rings[c] = ring{start: x.Starts[c], end: x.Starts[c]}
			if err := k.rings[c].readFrom(rest, x.Lengths[c]); err != nil {
				return nil, err
			}
			k.pending[c] = make([]byte, x.Pending[c])
			if _, err := io.ReadFull(rest, k.pending[c]); err != nil {
				return nil, err
			}
		}
		s.outs = append(s.outs, k)
	}
	return s, nil
}

// Children are the processes that this one had already.
func (s *Saved) Children() []*proc.Child {
	children := []*proc.Child{}
	for i := range s.Execs {
		x := &s.Execs[i]
		c := &proc.Child{Pid: x.Pid, Started: mono.Time(x.Started), Done: make(chan struct{})}
		if x.Status != nil {
			c.Status, c.Ended = syscall.WaitStatus(*x.Status), mono.Time(x.Ended)
			close(c.Done)
		}
		children = append(children, c)
	}
	return children
}

// Restore goes on with the commands of another program; the registry is empty, and its table has the children.
func (g *Registry) Restore(s *Saved, children []*proc.Child) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range s.Execs {
		x := &s.Execs[i]
		en := &entry{ready: make(chan struct{}), digest: x.Digest, since: mono.Time(x.Since)}
		close(en.ready)
		en.exec = g.restored(x, children[i], s.outs[i])
		g.known[x.ID] = en
		if x.Finished && en.since.IsZero() { // it ended while the program before stood still
			en.since = time.Now()
		}
		switch {
		case x.Finished && x.Bare && x.Digest != "":
			g.digested = append(g.digested, en)
			g.forgetDigested(en)
		case x.Finished:
			g.ended = append(g.ended, en)
			trimAt := en.since.Add(2 * holdFor)
			if least := time.Now().Add(holdOver); trimAt.Before(least) {
				trimAt = least
			}
			g.forgetEnded(en, trimAt)
		default:
			g.running++
			if x.Session != "" {
				g.sessions[x.Session] = en
			}
			g.follow(en, en.exec.stdin)
		}
	}
	for _, fd := range s.Adrift {
		if f := inherited(fd, "pipe"); f != nil {
			safe.Go(func() { g.adrift.read(f) })
		}
	}
}

func (g *Registry) restored(x *savedExec, child *proc.Child, k kept) *Exec {
	e := &Exec{ID: x.ID, Pid: x.Pid, table: g.table, child: child, kill: x.Kill, delay: g.OrphanDelay, hold: g.Hold, killAt: mono.Time(x.KillAt),
		readers: map[*Reader]struct{}{}, gone: map[*Reader]struct{}{}, serial: x.Serial, timedOut: x.TimedOut, spare: x.Bare, bare: x.Bare,
		finished: x.Finished, command: x.Command, session: x.Session, adrift: &g.adrift, stdin: inherited(x.Stdin, "pipe")}
	e.cond = sync.NewCond(&e.mu)
	if x.Tty {
		e.tty = &terminal{master: inherited(x.Master, "ptmx"), inputs: map[*os.File]struct{}{}}
	}
	if x.Finished {
		e.exit = exitOf(child, x.TimedOut)
	}
	for i := range e.rings {
		e.outs[i], e.pending[i], e.rings[i] = inherited(x.Outs[i], "pipe"), k.pending[i], k.rings[i]
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, at := range x.Readers {
		e.serial++
		e.waitFor(&Reader{Exec: e, asked: at[0], begun: at[1], pos: at[2], serial: e.serial, moved: time.Now()}, holdOver)
	}
	if !x.Finished {
		e.killOrphan(max(e.delay, holdOver))
	}
	return e
}

// inherited is a descriptor of the program before; nil if there is none.
func inherited(fd int, name string) *os.File {
	if fd < 0 {
		return nil
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name) // the runtime polls it: it does not block
}
