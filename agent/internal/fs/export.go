package fs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxExtents bounds the map of a sparse file; what lies behind is taken as one piece. archive/tar reads maps of at most 1 MiB, and
// an extent takes up to 27 bytes of it in a file of 10 TB.
const maxExtents = 1 << 15

// notFiles are file systems whose files are none: the kernel makes them up.
var notFiles = map[int64]bool{unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true,
	unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true, unix.PSTOREFS_MAGIC: true, unix.EFIVARFS_MAGIC: true}

// Tree is a file or directory that is sent as an archive.
type Tree struct {
	// Devices are sent, too, if this is set.
	Devices bool

	ctx   context.Context
	out   io.Writer
	links map[[2]uint64]string
	buf   []byte
	begun func()
}

// Export sends what is at path as a tar archive: a directory as `.` and what is below it, anything else by its own name. Links are
// sent as links. Left out are sockets, what the kernel makes up, and what is gone before its turn. begin is called before the first byte.
func (t *Tree) Export(ctx context.Context, root string, out io.Writer, begin func()) error {
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return err
	}
	t.ctx, t.out, t.links, t.buf = ctx, out, map[[2]uint64]string{}, make([]byte, 64<<10)
	name := "."
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if t.kind(&st) == 0 {
			return errNotRegular
		}
		name = filepath.Base(root)
	}
	begin()
	if err := t.walk(root, name); err != nil {
		return err
	}
	return t.sent(end(out))
}

func (t *Tree) sent(err error) error {
	if err != nil {
		return &Broken{err}
	}
	return nil
}

// kind is the type of a file in the archive, 0 if it is left out.
func (t *Tree) kind(st *unix.Stat_t) byte {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return '0'
	case unix.S_IFLNK:
		return '2'
	case unix.S_IFDIR:
		return '5'
	case unix.S_IFIFO:
		return '6'
	case unix.S_IFCHR:
		if t.Devices {
			return '3'
		}
	case unix.S_IFBLK:
		if t.Devices {
			return '4'
		}
	}
	return 0
}

// walk sends one file, and what is below it.
func (t *Tree) walk(file, name string) error {
	if err := t.ctx.Err(); err != nil {
		return &Broken{err}
	}
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return gone(err)
	}
	m := &member{name: name, kind: t.kind(&st), st: &st, xattrs: xattrs(file)}
	inode := [2]uint64{st.Dev, st.Ino}
	switch first, seen := t.links[inode]; {
	case m.kind == 0:
		return nil
	case seen:
		m.kind, m.link, m.xattrs = '1', first, nil
	case m.kind == '0':
		return t.file(file, m, inode)
	case m.kind == '2':
		buf := make([]byte, MaxPath+1)
		n, err := unix.Readlink(file, buf)
		if err != nil {
			return gone(err)
		}
		m.link = string(buf[:n])
	case m.kind == '5':
		return t.directory(file, m)
	}
	if st.Nlink > 1 && m.kind != '1' {
		t.links[inode] = name
	}
	head, _ := m.head()
	_, err := t.out.Write(head)
	return t.sent(err)
}

// gone is nil for a file that went away before its turn.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (t *Tree) directory(dir string, m *member) error {
	var sys unix.Statfs_t
	if err := unix.Statfs(dir, &sys); err != nil {
		return gone(err)
	}
	var names []string
	if !notFiles[int64(sys.Type)] {
		d, err := os.Open(dir)
		if err != nil {
			return gone(err)
		}
		names, err = d.Readdirnames(-1)
		d.Close()
		if err != nil {
			return err
		}
	}
	if !strings.HasSuffix(m.name, "/") {
		m.name += "/"
	}
	head, _ := m.head()
	if _, err := t.out.Write(head); err != nil {
		return t.sent(err)
	}
	for _, name := range names {
		below := m.name + name
		if m.name == "./" {
			below = "./" + name
		}
		if err := t.walk(path.Join(dir, name), below); err != nil {
			return err
		}
	}
	return nil
}

// file sends a regular file: exactly as much as its header says, else the whole breaks off.
func (t *Tree) file(name string, m *member, inode [2]uint64) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ELOOP { // a link by now
		return t.walk(name, m.name)
	}
	if err != nil {
		return gone(err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := unix.Fstat(fd, m.st); err != nil {
		return err
	}
	if m.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // another one by now
	}
	if m.st.Nlink > 1 {
		t.links[inode] = m.name
	}
	if m.st.Blocks*block < m.st.Size {
		m.data = extents(fd, m.st.Size)
	}
	head, content := m.head()
	if _, err := t.out.Write(head); err != nil {
		return t.sent(err)
	}
	parts := m.data
	if parts == nil {
		parts = []extent{{0, m.st.Size}}
	}
	for _, e := range parts {
		if err := t.copy(io.NewSectionReader(f, e.at, e.length), e.length); err != nil {
			return err
		}
	}
	if over := content % block; over != 0 {
		_, err := t.out.Write(zeros[:block-over])
		return t.sent(err)
	}
	return nil
}

func (t *Tree) copy(from io.Reader, length int64) error {
	for length > 0 {
		n, err := from.Read(t.buf[:min(int64(len(t.buf)), length)])
		if n > 0 {
			if _, werr := t.out.Write(t.buf[:n]); werr != nil {
				return t.sent(werr)
			}
			length -= int64(n)
		}
		if err == io.EOF && length > 0 {
			return errShrunk
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// extents are the parts of a file that are no holes, in their order, with one of length 0 at its end as GNU tar writes it. nil: the
// file system does not tell.
func extents(fd int, size int64) []extent {
	found := []extent{}
	for at := int64(0); at < size; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO { // the rest is a hole
			break
		}
		if err != nil {
			return nil
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return nil
		}
		if len(found) == maxExtents {
			to = size
		}
		from, to = min(from, size), min(to, size)
		found = append(found, extent{from, to - from})
		at = to
	}
	return append(found, extent{size, 0})
}
