package execs

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const chunkSize = 16 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// take gives what there is to read to use, once, at most `most` bytes. It has a chunk only when something is there: hundreds of silent commands cost
// none. The error is io.EOF at the end, and that of f otherwise.
func take(f *os.File, most int, use func([]byte)) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var chunk *[chunkSize]byte
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		chunk = chunks.Get().(*[chunkSize]byte)
		for {
			n, failed = unix.Read(int(fd), chunk[:min(most, chunkSize)])
			if failed != unix.EINTR {
				break
			}
		}
		if failed == unix.EAGAIN {
			chunks.Put(chunk)
			chunk = nil
			return false
		}
		return true
	})
	if chunk != nil {
		defer chunks.Put(chunk)
	}
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case n == 0:
		return io.EOF
	}
	use(chunk[:n])
	return nil
}
