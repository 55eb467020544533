package execs

import (
	"bytes"
	"io"
)

const (
	// unread is how far a command may be ahead of its slowest reader.
	unread = 256 << 10
	// inFlight bounds what a reader was given and its host may not have: the host's window of the stream (256 KiB), what it
	// has in its buffers and in an unfinished frame, and the frame in hand here.
	inFlight = 512 << 10
	// ringSize is how many bytes of a channel are kept.
	ringSize = unread + inFlight
)

// ring keeps the last ringSize bytes of a stream, addressed by their offset from its beginning. It grows as it fills:
// most commands write little.
type ring struct {
	buf   []byte
	start uint64 // offset of the oldest byte that is kept
	end   uint64 // offset after the newest
}

// append adds at most ringSize bytes and drops the oldest where there is no room.
func (r *ring) append(p []byte) {
	if len(p) > ringSize {
		panic("execs: more bytes than the ring holds")
	}
	r.grow(int(r.end-r.start) + len(p))
	for len(p) > 0 {
		at := int(r.end % uint64(len(r.buf)))
		n := copy(r.buf[at:], p)
		p = p[n:]
		r.end += uint64(n)
	}
	if r.end-r.start > uint64(len(r.buf)) {
		r.start = r.end - uint64(len(r.buf))
	}
}

// readFrom appends n bytes, at most ringSize, of a ring that was saved.
func (r *ring) readFrom(from io.Reader, n int) error {
	r.grow(n)
	buf := make([]byte, min(n, 16<<10))
	for n > 0 {
		p := buf[:min(n, len(buf))]
		if _, err := io.ReadFull(from, p); err != nil {
			return err
		}
		r.append(p)
		n -= len(p)
	}
	return nil
}

func (r *ring) grow(want int) {
	if want > ringSize {
		want = ringSize
	}
	if want <= len(r.buf) {
		return
	}
	size := max(len(r.buf), 4<<10)
	for size < want {
		size = min(2*size, ringSize)
	}
	bigger := make([]byte, size)
	for off := r.start; off < r.end; {
		from := int(off % uint64(len(r.buf)))
		to := int(off % uint64(size))
		n := min(int(r.end-off), len(r.buf)-from, size-to)
		copy(bigger[to:to+n], r.buf[from:from+n])
		off += uint64(n)
	}
	r.buf = bigger
}

// copyAt copies the bytes from offset off, which is in [start, end], into p.
func (r *ring) copyAt(p []byte, off uint64) int {
	done := 0
	for done < len(p) && off < r.end {
		from := int(off % uint64(len(r.buf)))
		n := min(len(p)-done, int(r.end-off), len(r.buf)-from)
		copy(p[done:], r.buf[from:from+n])
		done += n
		off += uint64(n)
	}
	return done
}

// trim keeps the last size bytes and gives the rest of the memory back.
func (r *ring) trim(size int) {
	if len(r.buf) <= size {
		return
	}
	from := max(r.start, r.end-min(r.end, uint64(size)))
	kept := make([]byte, r.end-from)
	r.copyAt(kept, from)
	*r = ring{start: from, end: from}
	r.append(kept)
}

// lineWithin is the offset of the first line that begins within the last n bytes; where none does, of the first escape sequence,
// else of the first byte.
func (r *ring) lineWithin(n uint64) uint64 {
	from := max(r.start, r.end-min(r.end, n))
	if from == 0 {
		return 0
	}
	kept := make([]byte, r.end-from)
	r.copyAt(kept, from)
	if at := bytes.IndexByte(kept, '\n'); at >= 0 {
		return from + uint64(at) + 1
	}
	return from + uint64(max(0, bytes.IndexByte(kept, 0x1b)))
}
