package fs

import (
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrs bounds the names of a file's extended attributes, maxXattr one value: both are the kernel's own limits.
const maxXattrs, maxXattr = 64 << 10, 64 << 10

// xattrs are the extended attributes of a file, by name; links are not followed. A file system without them has none.
func xattrs(path string) map[string]string {
	names := make([]byte, maxXattrs)
	n, err := unix.Llistxattr(path, names)
	if err != nil || n == 0 {
		return nil
	}
	found := map[string]string{}
	value := make([]byte, maxXattr)
	for _, name := range strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			found[name] = string(value[:n])
		}
	}
	return found
}

// copyXattrs gives the new file those of the one that it replaces, as far as that goes.
func copyXattrs(path string, fd int) {
	for name, value := range xattrs(path) {
		_ = unix.Fsetxattr(fd, name, []byte(value), 0)
	}
}
