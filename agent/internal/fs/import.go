package fs

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	errArchive = &Refusal{"ARCHIVE", "it is no tar archive"}
	errLeads   = &Refusal{"ARCHIVE", "a name in the archive leads out of the directory"}
)

// Taken is what an import has made.
type Taken struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
}

// Import unpacks an archive into the directory at path, which is made if it is not there. Directories that are there stay, with what
// is in them; other files are replaced, each when it is complete. The error is a Broken if body failed.
func Import(path string, body io.Reader) (Taken, error) {
	path = "/" + strings.Trim(path, "/")
	if err := unix.Mkdir(path, 0o755); err != nil && err != unix.EEXIST {
		return Taken{}, err
	}
	root, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Taken{}, err
	}
	defer unix.Close(root)
	noted := &noting{r: body}
	t := &tree{root: root, fd: -1, archive: tar.NewReader(noted), owners: os.Geteuid() == 0}
	defer t.leave()
	err = t.all()
	if err == nil {
		_, err = io.Copy(io.Discard, noted) // to the word that all of it was sent
	}
	if noted.err != nil {
		return t.taken, &Broken{noted.err}
	}
	if err != nil {
		return t.taken, err
	}
	return t.taken, unix.Syncfs(root)
}

// noting keeps the error of a reader, to tell it from one of what is read.
type noting struct {
	r   io.Reader
	err error
}

func (n *noting) Read(p []byte) (int, error) {
	c, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return c, err
}

func (t *tree) all() error {
	for {
		h, err := t.archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errArchive
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // of no file
		}
		if err := t.one(h); err != nil {
			return err
		}
		t.taken.Entries++
	}
	// What is made in a directory changes its time, and its mode may forbid it.
	slices.Reverse(t.later)
	for _, h := range t.later {
		if err := t.finish(h); err != nil {
			return err
		}
	}
	return nil
}

// one makes one file of the archive.
func (t *tree) one(h *tar.Header) error {
	names, err := parts(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		t.later = append(t.later, &tar.Header{Name: h.Name, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, PAXRecords: h.PAXRecords})
		_, err := t.enter(names)
		return err
	}
	if len(names) == 0 {
		return errLeads
	}
	name, temp := names[len(names)-1], ".nexus-"+nonce()
	make := func(dir int) error { return t.make(h, dir, temp) }
	if h.Typeflag == tar.TypeLink {
		from, file, err := t.linked(h)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		make = func(dir int) error { return unix.Linkat(from, file, dir, temp, 0) }
	}
	dir, err := t.enter(names[:len(names)-1])
	if err != nil {
		return err
	}
	if err := make(dir); err != nil {
		_ = unix.Unlinkat(dir, temp, 0)
		return err
	}
	err = unix.Renameat(dir, temp, dir, name)
	// Of two names of one file rename(2) leaves both.
	if left := unix.Unlinkat(dir, temp, 0); err == nil && left != nil && left != unix.ENOENT {
		return left
	}
	return err
}

func (t *tree) make(h *tar.Header, dir int, temp string) error {
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return t.regular(h, dir, temp)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir, temp); err != nil {
			return err
		}
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		return errArchive
	}
	if mode&unix.S_IFMT != 0 {
		dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if err := unix.Mknodat(dir, temp, mode, int(dev)); err != nil {
			return err
		}
	}
	if t.owners {
		if err := unix.Fchownat(dir, temp, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeSymlink { // its name was made a moment ago, by us and at random
		if err := unix.Fchmodat(dir, temp, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, temp, times(h.ModTime), unix.AT_SYMLINK_NOFOLLOW)
}

func times(t time.Time) []unix.Timespec {
	ts := unix.NsecToTimespec(t.UnixNano())
	return []unix.Timespec{ts, ts}
}

func (t *tree) regular(h *tar.Header, dir int, temp string) error {
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temp)
	defer f.Close()
	n, err := copyTo(f, t.archive, 0, true)
	t.taken.Bytes += n
	if broken := new(Broken); errors.As(err, &broken) {
		return errArchive
	}
	if err != nil {
		return err
	}
	return t.dress(h, fd)
}

// dress gives an open file or directory its owner, attributes, mode and time.
func (t *tree) dress(h *tar.Header, fd int) error {
	if t.owners {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && err != unix.EOPNOTSUPP && err != unix.EPERM {
			return err
		}
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(fd), times(h.ModTime), 0)
}

// linked gives the descriptor of the directory that a hard link's file is in, the caller's own, and its name there.
func (t *tree) linked(h *tar.Header) (int, string, error) {
	names, err := parts(h.Linkname)
	if err != nil {
		return -1, "", err
	}
	if len(names) == 0 {
		return -1, "", errLeads
	}
	dir, err := t.enter(names[:len(names)-1])
	if err != nil {
		return -1, "", err
	}
	own, err := unix.Dup(dir) // the next enter closes the other
	return own, names[len(names)-1], err
}

func (t *tree) finish(h *tar.Header) error {
	names, err := parts(h.Name)
	if err != nil {
		return err
	}
	fd, err := t.enter(names)
	if err != nil {
		return err
	}
	return t.dress(h, fd)
}
