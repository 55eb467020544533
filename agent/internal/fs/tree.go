package fs

import (
	"archive/tar"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is a directory into which an archive is unpacked. Every way into it is walked from its descriptor, name by name, and no link
// is followed: neither one of the archive nor one that somebody in the guest puts in the way.
type tree struct {
	root int
	// dir is the directory of the last name, and its descriptor; -1: none.
	dir     []string
	fd      int
	later   []*tar.Header
	taken   Taken
	archive *tar.Reader
	// owners is false for an agent that is not root, as in tests: like tar it then gives no file away.
	owners bool
}

// parts are the names of a path in an archive.
func parts(name string) ([]string, error) {
	var found []string
	for _, part := range strings.Split(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, errLeads
		default:
			found = append(found, part)
		}
	}
	return found, nil
}

func (t *tree) leave() {
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
	t.fd = -1
}

// enter gives the descriptor of a directory below the root, which is good until the next call. Those on the way are made.
func (t *tree) enter(dir []string) (int, error) {
	if len(dir) == 0 {
		return t.root, nil
	}
	if t.fd >= 0 && slices.Equal(dir, t.dir) {
		return t.fd, nil
	}
	t.leave()
	at := t.root
	for _, name := range dir {
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			if err = unix.Mkdirat(at, name, 0o755); err == nil || err == unix.EEXIST {
				next, err = unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			}
		}
		if at != t.root {
			unix.Close(at)
		}
		if err != nil {
			return -1, notDirectory(err)
		}
		at = next
	}
	t.dir, t.fd = slices.Clone(dir), at
	return at, nil
}

// notDirectory calls a link in the place of a directory what it is.
func notDirectory(err error) error {
	if err == unix.ELOOP {
		return unix.ENOTDIR
	}
	return err
}
