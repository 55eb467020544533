// Package files reads files of the guest, which may be anything: a FIFO in the place of /etc/passwd must not hold the
// agent, a huge one must not fill its memory.
package files

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// Open opens a regular file for reading.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Small returns the first 16 KiB of a file, nothing if it cannot be read.
func Small(path string) string {
	f, err := Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 16<<10))
	return string(b)
}
