package execs

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// Reader is one attached reader of both channels.
type Reader struct {
	Exec *Exec

	asked  [2]uint64 // where it wanted to begin
	begun  [2]uint64 // where it could begin
	pos    [2]uint64
	gaps   [2]uint64
	turn   int
	serial int
	moved  time.Time // when it took bytes the last time
	behind bool      // it took nothing for too long: the command goes on without it
}

// need is the oldest byte that the reader, or the one that comes in its place, may still want.
func (r *Reader) need(i int) uint64 {
	return max(r.begun[i], r.pos[i]-min(r.pos[i], inFlight))
}

// precedes says whether a reader that begins at from may come in the place of this one.
func (r *Reader) precedes(from [2]uint64) bool {
	for i := range from {
		low := r.need(i)
		if low == r.begun[i] {
			low = r.asked[i]
		}
		if from[i] < low || from[i] > r.pos[i] {
			return false
		}
	}
	return true
}

// ErrBeyond says that a reader asked for an offset that is not written yet.
var ErrBeyond = errors.New("the offset is beyond the end of the output")

// Attach adds a reader that starts at the given offsets of stdout and stderr.
func (e *Exec) Attach(from [2]uint64) (*Reader, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attach(from)
}

// AttachTail adds a reader that starts at a line's beginning within the last n bytes of each channel.
func (e *Exec) AttachTail(n uint64) *Reader {
	e.mu.Lock()
	defer e.mu.Unlock()
	var from [2]uint64
	for i := range e.rings {
		from[i] = e.rings[i].lineWithin(n)
	}
	r, _ := e.attach(from)
	return r
}

func (e *Exec) attach(from [2]uint64) (*Reader, error) {
	e.serial++
	r := &Reader{Exec: e, asked: from, pos: from, serial: e.serial, moved: time.Now()}
	for i := range from {
		if from[i] > e.rings[i].end {
			return nil, ErrBeyond
		}
		if start := e.rings[i].start; from[i] < start {
			r.gaps[i], r.pos[i] = start-from[i], start
		}
	}
	r.begun = r.pos
	e.readers[r] = struct{}{}
	for gone := range e.gone {
		if gone.precedes(from) {
			delete(e.gone, gone)
		}
	}
	e.cond.Broadcast()
	if e.orphan != nil {
		e.orphan.Stop()
		e.orphan = nil
	}
	return r, nil
}

// Detach removes the reader. The command goes on; unless all was read it is held for a while as if the reader were there, for a
// reader that lost its connection comes back and wants to go on where it was.
func (r *Reader) Detach() {
	e := r.Exec
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.readers, r)
	if r.mayWant() && !r.behind && !e.followed(r) {
		e.waitFor(r, e.hold)
	}
	e.cond.Broadcast()
	e.giveBack()
	e.killOrphan(e.delay)
}

// mayWant says whether it may come back for something that is not kept anyway. The lock is held.
func (r *Reader) mayWant() bool {
	e := r.Exec
	return !e.finished || e.spare || r.pos[0] < e.rings[0].end || r.pos[1] < e.rings[1].end
}

// waitFor holds the command for a reader that may come back. The lock is held.
func (e *Exec) waitFor(r *Reader, hold time.Duration) {
	e.gone[r] = struct{}{}
	time.AfterFunc(hold, func() {
		defer safe.Recover()
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.gone, r)
		e.cond.Broadcast()
		e.giveBack()
	})
}

// killOrphan ends a command without readers after a while, where that was asked for. The lock is held.
func (e *Exec) killOrphan(delay time.Duration) {
	if !e.kill || e.exit != nil || len(e.readers) > 0 {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(delay, func() {
		defer safe.Recover()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.orphan == t {
			e.table.Signal(e.child, syscall.SIGKILL)
		}
	})
	e.orphan = t
}

// followed says whether a reader has come after r: the host may be back on a new connection before the loss of the old one
// is seen here.
func (e *Exec) followed(r *Reader) bool {
	for other := range e.readers {
		if other.serial > r.serial {
			return true
		}
	}
	return false
}

// Wait waits until Fill has something to give. io.EOF after the last.
func (r *Reader) Wait(ctx context.Context) error {
	e := r.Exec
	stop := context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.cond.Broadcast()
	})
	defer stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case e.frozen: // what it takes now the next program would not know
		case r.due():
			return nil
		case e.finished:
			return io.EOF
		}
		e.cond.Wait()
	}
}

// Fill fills buf with whole frames and gives their length; buf has room for one of any size.
func (r *Reader) Fill(buf []byte) int {
	e := r.Exec
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.frozen { // since Wait
		e.cond.Wait()
	}
	n := r.fill(buf)
	e.cond.Broadcast()
	return n
}

// due says whether there is something to give. The lock is held.
func (r *Reader) due() bool {
	for i := range r.pos {
		if r.gaps[i] > 0 || r.pos[i] < r.Exec.rings[i].end {
			return true
		}
	}
	return false
}

// More says whether Wait would return at once.
func (r *Reader) More() bool {
	r.Exec.mu.Lock()
	defer r.Exec.mu.Unlock()
	return r.Exec.finished || r.due()
}

// fill makes frames of what there is, the channels by turns. The lock is held.
func (r *Reader) fill(buf []byte) int {
	frames := buf[:0]
	if r.behind {
		r.skip()
	}
	for i, dropped := range r.gaps {
		if dropped > 0 {
			frames = wire.AppendGap(frames, byte(i)+wire.Stdout, dropped)
			r.gaps[i] = 0
		}
	}
	n := len(frames)
	for range 2 {
		i := r.turn
		r.turn = 1 - r.turn
		if room := len(buf) - n - wire.FrameHead; room > 0 {
			m := r.Exec.rings[i].copyAt(buf[n+wire.FrameHead:][:min(room, wire.MaxFrame)], r.pos[i])
			if m > 0 {
				wire.PutHead(buf[n:], byte(i)+wire.Stdout, m)
				r.pos[i] += uint64(m)
				r.moved = time.Now()
				n += wire.FrameHead + m
			}
		}
	}
	return n
}

// skip goes on where the ring begins now; what is gone is told as a gap. The lock is held.
func (r *Reader) skip() {
	r.behind = false
	for i := range r.pos {
		start := r.Exec.rings[i].start
		if r.pos[i] < start {
			r.gaps[i] += start - r.pos[i]
			r.pos[i] = start
		}
		r.begun[i] = max(r.begun[i], start)
	}
}

// From are the offsets that its bytes, gaps included, are counted from.
func (r *Reader) From() [2]uint64 { return r.asked }

// Exit is how the command ended; valid after Wait said io.EOF.
func (r *Reader) Exit() Exit {
	r.Exec.mu.Lock()
	defer r.Exec.mu.Unlock()
	return *r.Exec.exit
}
