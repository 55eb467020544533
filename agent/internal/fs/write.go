package fs

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Write says how a file is written. Without Append and Offset it is written whole: beside its place, and moved there when all
// of it is on disk, so that a failure leaves what was there.
type Write struct {
	Path string
	// Mode nil, UID and GID -1: as the file has them that is replaced; else 0644, root.
	Mode     *uint32
	UID, GID int
	// Modified is the time to give it, ms since the epoch; nil: now.
	Modified *int64
	Append   bool
	// Offset is where to write in the file as it is; -1: none. What lies behind stays.
	Offset int64
}

// maxLinks is how many links one path may lead over, as in the kernel.
const maxLinks = 40

// From writes what body gives. The error is a Broken if body failed.
func (w Write) From(body io.Reader) (int64, Entry, error) {
	path, err := resolve(w.Path)
	if err != nil {
		return 0, Entry{}, err
	}
	var n int64
	if w.Append || w.Offset >= 0 {
		n, err = w.inPlace(path, body)
	} else {
		n, err = w.whole(path, body)
	}
	if err != nil {
		return n, Entry{}, err
	}
	e, err := Stat(path, true)
	return n, e, err
}

// resolve follows links in the last part of a path, so that the file behind them is replaced and not the link. What it leads to
// need not be there.
func resolve(path string) (string, error) {
	for range maxLinks {
		if err := named(path); err != nil {
			return "", unix.EISDIR
		}
		buf := make([]byte, MaxPath+1)
		n, err := unix.Readlink(path, buf)
		if err != nil { // not a link, or not there
			return path, nil
		}
		if target := string(buf[:n]); filepath.IsAbs(target) {
			path = target
		} else {
			path = path[:lastSlash(path)+1] + target // not cleaned: .. is the kernel's to resolve
		}
	}
	return "", unix.ELOOP
}

func lastSlash(path string) int {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return i
		}
	}
	return -1
}

func (w Write) inPlace(path string, body io.Reader) (int64, error) {
	mode := uint32(0o644)
	if w.Mode != nil {
		mode = *w.Mode
	}
	_, statErr := os.Lstat(path)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, errNotRegular
	}
	if w.Append {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND); err != nil {
			return 0, err
		}
	} else if _, err := f.Seek(w.Offset, io.SeekStart); err != nil {
		return 0, err
	}
	if os.IsNotExist(statErr) || w.Mode != nil || w.UID >= 0 || w.GID >= 0 {
		if err := own(fd, w.Mode, w.UID, w.GID); err != nil {
			return 0, err
		}
	}
	// What begins at the end of a file has no zeros to write over.
	n, err := copyTo(f, body, w.Offset, !w.Append && w.Offset >= st.Size)
	if err == nil {
		err = touch(fdPath(fd), w.Modified)
	}
	if err != nil {
		return n, err
	}
	return n, f.Sync()
}

func own(fd int, mode *uint32, uid, gid int) error {
	if uid >= 0 || gid >= 0 {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return err
		}
	}
	if mode == nil {
		return nil
	}
	return unix.Fchmod(fd, *mode)
}

func (w Write) whole(path string, body io.Reader) (n int64, err error) {
	mode, uid, gid := uint32(0o644), w.UID, w.GID
	var old unix.Stat_t
	switch statErr := unix.Lstat(path, &old); {
	case statErr == nil && old.Mode&unix.S_IFMT == unix.S_IFDIR:
		return 0, unix.EISDIR
	case statErr == nil && old.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, errNotRegular
	case statErr == nil:
		mode = old.Mode & 0o7777
		if uid < 0 {
			uid = int(old.Uid)
		}
		if gid < 0 {
			gid = int(old.Gid)
		}
	case !errors.Is(statErr, unix.ENOENT):
		return 0, statErr
	}
	if w.Mode != nil {
		mode = *w.Mode
	}
	dir := path[:lastSlash(path)+1]
	temp := dir + ".nexus-" + nonce()
	fd, err := unix.Open(temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), temp)
	defer f.Close()
	defer func() {
		if err != nil {
			_ = unix.Unlink(temp)
		}
	}()
	if n, err = copyTo(f, body, 0, true); err != nil {
		return n, err
	}
	if err = own(fd, nil, uid, gid); err != nil {
		return n, err
	}
	if old.Ino != 0 {
		copyXattrs(path, fd)
	}
	if err = own(fd, &mode, -1, -1); err != nil {
		return n, err
	}
	if err = touch(fdPath(fd), w.Modified); err != nil {
		return n, err
	}
	if err = f.Sync(); err != nil {
		return n, err
	}
	if err = unix.Rename(temp, path); err != nil {
		return n, err
	}
	return n, syncDir(dir)
}

func syncDir(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil && err != unix.EINVAL { // a file system that has nothing to sync
		return err
	}
	return nil
}

func nonce() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// hole is the unit in which zeros are left out: a block of most file systems.
const hole = 4096

var zeros [hole]byte

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// copyTo writes what body gives; with sparse, from the place at on, which is the end of the file: zeros become holes.
func copyTo(f *os.File, body io.Reader, at int64, sparse bool) (int64, error) {
	buf := make([]byte, 64<<10)
	var total int64
	for {
		n, err := body.Read(buf)
		for sparse && err == nil && n < len(buf) { // whole blocks
			var m int
			m, err = body.Read(buf[n:])
			n += m
		}
		if n > 0 {
			var werr error
			if sparse {
				werr = writeSparse(f, buf[:n], at+total)
			} else {
				_, werr = f.Write(buf[:n])
			}
			if werr != nil {
				return total, werr
			}
			total += int64(n)
		}
		if err == io.EOF {
			if sparse {
				return total, f.Truncate(at + total)
			}
			return total, nil
		}
		if err != nil {
			return total, &Broken{err}
		}
	}
}

// writeSparse writes data at the place at, but for whole blocks of zeros.
func writeSparse(f *os.File, data []byte, at int64) error {
	for len(data) > 0 {
		n := 0 // bytes up to the next block of zeros
		for n < len(data) && !(len(data)-n >= hole && bytes.Equal(data[n:n+hole], zeros[:])) {
			n += min(hole, len(data)-n)
		}
		if n > 0 {
			if _, err := f.WriteAt(data[:n], at); err != nil {
				return err
			}
		} else {
			n = hole
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}
