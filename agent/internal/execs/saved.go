package execs

import (
	"encoding/json"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/mono"
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
