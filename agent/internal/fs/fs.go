// Package fs does what the host asks with the guest's files. Paths are absolute and resolved as root, with the kernel's own
// rules: it is the guest's own tree.
package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// MaxPath is the longest path, PATH_MAX without its NUL.
const MaxPath = 4095

// Entry is what is told of one file.
type Entry struct {
	Name string `json:"name"`
	// NameBytes is the name where that is not UTF-8.
	NameBytes    []byte  `json:"name_base64,omitempty"`
	Type         string  `json:"type"`
	SizeBytes    int64   `json:"size_bytes"`
	Mode         string  `json:"mode"`
	UID          uint32  `json:"uid"`
	GID          uint32  `json:"gid"`
	ModifiedAtMs int64   `json:"modified_at_ms"`
	Target       *string `json:"target"`
	Etag         string  `json:"etag"`
}

// Refusal is a reason that has no errno, or one that says more than it.
type Refusal struct{ Code, Detail string }

func (r *Refusal) Error() string { return r.Detail }

var (
	errNotRegular = &Refusal{"NOT_REGULAR", "it is not a regular file"}
	errChanged    = &Refusal{"CHANGED", "it has changed"}
	errShrunk     = &Refusal{"SHRUNK", "it became shorter while it was read"}
	errNoName     = &Refusal{"EINVAL", "its last part is not a name"}
)

// CodeOf is the code of an error for the host: an errno's name, or that of a Refusal.
func CodeOf(err error) (code, detail string) {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refusal.Code, refusal.Detail
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if name := unix.ErrnoName(errno); name != "" {
			return name, errno.Error()
		}
	}
	return "EIO", err.Error()
}

// CheckPath says what is wrong with a path of the host.
func CheckPath(path string) error {
	if !strings.HasPrefix(path, "/") || len(path) > MaxPath || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("a path is absolute, has at most %d bytes and no NUL", MaxPath)
	}
	return nil
}

var types = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "directory", unix.S_IFLNK: "link", unix.S_IFIFO: "fifo",
	unix.S_IFSOCK: "socket", unix.S_IFBLK: "block", unix.S_IFCHR: "character",
}

// etag changes with the file's content, as far as inode, length and time of change show it.
func etag(st *unix.Stat_t) string {
	return fmt.Sprintf("%x-%x-%x-%x", st.Dev, st.Ino, st.Size, st.Mtim.Nano())
}

// entry tells of a file; readlink is asked for the target of a link.
func entry(name string, st *unix.Stat_t, readlink func([]byte) (int, error)) Entry {
	e := Entry{Name: name, Type: types[st.Mode&unix.S_IFMT], SizeBytes: st.Size, Mode: fmt.Sprintf("%04o", st.Mode&0o7777),
		UID: st.Uid, GID: st.Gid, ModifiedAtMs: st.Mtim.Nano() / 1e6, Etag: etag(st)}
	if !utf8.ValidString(name) {
		e.Name, e.NameBytes = strings.ToValidUTF8(name, "\uFFFD"), []byte(name)
	}
	if e.Type == "link" {
		buf := make([]byte, MaxPath+1)
		if n, err := readlink(buf); err == nil {
			target := strings.ToValidUTF8(string(buf[:n]), "\uFFFD")
			e.Target = &target
		}
	}
	return e
}

// Stat tells of the file at path, or of what a link at path leads to.
func Stat(path string, follow bool) (Entry, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if follow {
		flags = 0
	}
	if err := unix.Fstatat(unix.AT_FDCWD, path, &st, flags); err != nil {
		return Entry{}, err
	}
	return entry(filepath.Base(path), &st, func(b []byte) (int, error) { return unix.Readlink(path, b) }), nil
}

// List calls each with what is in the directory, in the directory's own order. It returns before the first call if the
// directory cannot be read.
func List(path string, begin func(), each func(Entry) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	begin()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // it is gone
			}
			e := entry(name, &st, func(b []byte) (int, error) { return unix.Readlinkat(fd, name, b) })
			if err := each(e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// named refuses the paths whose last part names no entry of a directory: the root, and what ends in . or ..
func named(path string) error {
	path = strings.TrimRight(path, "/")
	switch path[strings.LastIndexByte(path, '/')+1:] {
	case "", ".", "..":
		return errNoName
	}
	return nil
}

// Remove removes one file, or with recursive a directory and all in it. A link is removed, not what it leads to.
func Remove(path string, recursive bool) error {
	if err := named(path); err != nil {
		return err
	}
	path = strings.TrimRight(path, "/")
	if !recursive {
		return unix.Unlink(path)
	}
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// Mkdir makes a directory with exactly this mode; with parents those above it that are missing, too, and one that is there is fine.
func Mkdir(path string, mode uint32, parents bool, uid, gid int) error {
	path = "/" + strings.Trim(path, "/")
	if parents && lastSlash(path) > 0 { // not by filepath.Dir: .. is the kernel's to resolve
		if err := os.MkdirAll(path[:lastSlash(path)], 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mkdir(path, mode); err != nil {
		if info, statErr := os.Stat(path); err == unix.EEXIST && parents && statErr == nil && info.IsDir() {
			return nil
		}
		return err
	}
	return Change(path, &mode, uid, gid, nil)
}

// Rename moves a file within its file system, in the place of what is there only with replace.
func Rename(from, to string, replace bool) error {
	var flags uint
	if !replace {
		flags = unix.RENAME_NOREPLACE
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
	if err == unix.EINVAL && !replace { // a file system that does not know the flag
		if _, statErr := os.Lstat(to); statErr == nil {
			return unix.EEXIST
		}
		return unix.Rename(from, to)
	}
	return err
}

// Change sets owner, mode and time (ms since the epoch) of what path leads to; -1 and nil leave them.
func Change(path string, mode *uint32, uid, gid int, modified *int64) error {
	if uid >= 0 || gid >= 0 {
		if err := unix.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	if mode != nil { // after the owner, whose change clears set-uid
		if err := unix.Chmod(path, *mode); err != nil {
			return err
		}
	}
	return touch(path, modified)
}

// touch sets the time of what path leads to; nil leaves it.
func touch(path string, modified *int64) error {
	if modified == nil {
		return nil
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times(time.UnixMilli(*modified)), 0)
}
