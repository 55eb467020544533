package wire

import (
	"encoding/binary"
	"errors"
	"io"
)

// Frames reads a body in frames: length (4 bytes, big endian, at most MaxFrame), that many bytes; the empty one is the end. A body
// that ends without it was given up by the host, whatever its stream looks like.
type Frames struct {
	R    io.Reader
	left int
	over bool
}

var errFrame = errors.New("a frame is too long")

func (f *Frames) Read(p []byte) (int, error) {
	if f.over {
		return 0, io.EOF
	}
	if f.left == 0 {
		var head [4]byte
		if _, err := io.ReadFull(f.R, head[:]); err != nil {
			return 0, whole(err)
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > MaxFrame {
			return 0, errFrame
		}
		if n == 0 {
			f.over = true
			return 0, io.EOF
		}
		f.left = int(n)
	}
	n, err := f.R.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, whole(err)
}

func whole(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
