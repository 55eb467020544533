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

// Saved are the commands of a registry as the next program of this process finds them: a change of its fields is another
// format (takeover.Format). After the JSON come the bytes of the rings, in order.
type Saved struct {
	Execs  []savedExec `json:"execs"` // known longest first
	Adrift []int       `json:"adrift"`
	outs   []kept
}

// kept are the bytes of one command.
type kept struct {
	rings   [2]ring
	pending [2][]byte
}

type savedExec struct {
	ID       string         `json:"id"`
	Pid      int            `json:"pid"`
	Command  string         `json:"command"`
	Session  string         `json:"session,omitempty"`
	Digest   string         `json:"digest,omitempty"`
	Kill     bool           `json:"kill,omitempty"`
	TimedOut bool           `json:"timed_out,omitempty"`
	Bare     bool           `json:"bare,omitempty"`
	Finished bool           `json:"finished,omitempty"`
	Status   *uint32        `json:"status,omitempty"` // of wait(2)
	Started  int64          `json:"started"`          // stamps of package mono
	Ended    int64          `json:"ended,omitempty"`
	KillAt   int64          `json:"kill_at,omitempty"`
	Since    int64          `json:"since,omitempty"` // in the list of those that ended
	Serial   int            `json:"serial"`
	Tty      bool           `json:"tty,omitempty"`
	Master   int            `json:"master"` // descriptors; -1: none
	Stdin    int            `json:"stdin"`
	Outs     [2]int         `json:"outs"`
	Starts   [2]uint64      `json:"starts"` // of the rings, and how long they are
	Lengths  [2]int         `json:"lengths"`
	Pending  [2]int         `json:"pending"`
	Readers  [][3][2]uint64 `json:"readers"` // asked, begun, pos
}

func closeOnExec(f *os.File, on bool) int {
	flag, number := 0, -1
	if on {
		flag = unix.FD_CLOEXEC
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	_ = raw.Control(func(fd uintptr) {
		if _, err := unix.FcntlInt(fd, unix.F_SETFD, flag); err == nil {
			number = int(fd)
		}
	})
	return number
}

// keep lets the next program have the file, and gives its number.
func (f *Frozen) keep(file *os.File) int {
	if file == nil {
		return -1
	}
	f.kept = append(f.kept, file)
	return closeOnExec(file, false)
}

// Size is how many bytes of output Save would write.
func (f *Frozen) Size() (size uint64) {
	for _, e := range f.execs {
		for i := range e.rings {
			size += e.rings[i].end - e.rings[i].start + uint64(len(e.pending[i]))
		}
	}
	return size
}

// Save writes what the next program of this process needs; the descriptors are its own from now on.
func (f *Frozen) Save(w io.Writer) error {
	s := Saved{Execs: []savedExec{}, Adrift: []int{}}
	listed, entries := map[*entry]bool{}, []*entry{}
	for _, list := range [][]*entry{f.g.digested, f.g.ended} {
		for _, en := range list {
			listed[en] = true
			entries = append(entries, en)
		}
	}
	for _, en := range f.g.known {
		if !listed[en] && en.exec != nil {
			entries = append(entries, en)
		}
	}
	held := map[*os.File]bool{}
	for _, en := range entries {
		s.Execs = append(s.Execs, f.saved(en))
		for _, out := range en.exec.outs {
			held[out] = true
		}
	}
	for file := range f.g.adrift.files {
		if !held[file] {
			s.Adrift = append(s.Adrift, f.keep(file))
		}
	}
	head, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(head, '\n')); err != nil {
		return err
	}
	for _, en := range entries {
		if err := en.exec.writeBytes(w); err != nil {
			return err
		}
	}
	return nil
}

func (f *Frozen) saved(en *entry) savedExec {
	e := en.exec
	s := savedExec{ID: e.ID, Pid: e.Pid, Command: e.command, Session: e.session, Digest: en.digest, Kill: e.kill, TimedOut: e.timedOut,
		Bare: e.bare, Finished: e.finished || e.exit != nil && e.outs == [2]*os.File{}, Started: mono.Stamp(e.child.Started),
		KillAt: mono.Stamp(e.killAt), Since: mono.Stamp(en.since), Serial: e.serial, Tty: e.tty != nil, Master: -1,
		Stdin: -1, Readers: [][3][2]uint64{}}
	select {
	case <-e.child.Done:
		status := uint32(e.child.Status)
		s.Status, s.Ended = &status, mono.Stamp(e.child.Ended)
	default:
	}
	if !s.Finished {
		s.Stdin = f.keep(e.stdin)
	}
	if e.tty != nil && !s.Finished {
		e.tty.mu.Lock()
		s.Master = f.keep(e.tty.master)
		e.tty.mu.Unlock()
	}
	for i := range e.rings {
		s.Outs[i] = f.keep(e.outs[i])
		s.Starts[i], s.Lengths[i], s.Pending[i] = e.rings[i].start, int(e.rings[i].end-e.rings[i].start), len(e.pending[i])
	}
	for _, readers := range []map[*Reader]struct{}{e.readers, e.gone} {
		for r := range readers {
			if !r.behind {
				s.Readers = append(s.Readers, [3][2]uint64{r.asked, r.begun, r.pos})
			}
		}
	}
	return s
}

func (e *Exec) writeBytes(w io.Writer) error {
	buf := make([]byte, 64<<10)
	for i := range e.rings {
		r := &e.rings[i]
		for at := r.start; at < r.end; {
			n := r.copyAt(buf, at)
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			at += uint64(n)
		}
		if _, err := w.Write(e.pending[i]); err != nil {
			return err
		}
	}
	return nil
}

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
