package probe

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Extents is what a file takes of its file system.
type Extents struct {
	UsedBytes uint64 `json:"used_bytes"`
	// SharedBytes is what other files share of that.
	SharedBytes uint64 `json:"shared_bytes"`
}

// From linux/fiemap.h; golang.org/x/sys has them not.
const (
	fsIocFiemap  = 0xc020660b // _IOWR('f', 11, struct fiemap)
	extentLast   = 0x0001
	extentShared = 0x2000
	atOnce       = 512
)

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	start, length                    uint64
	flags, mapped, count, reserved32 uint32
	extents                          [atOnce]fiemapExtent
}

// ReadExtents looks at files; nil for one that cannot be looked at.
func ReadExtents(paths []string) []*Extents {
	found := make([]*Extents, len(paths))
	for i, path := range paths {
		if e, err := readExtents(path); err == nil {
			found[i] = e
		}
	}
	return found
}

func readExtents(path string) (*Extents, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	e := &Extents{UsedBytes: uint64(st.Blocks) * 512}
	m := new(fiemap)
	for start := uint64(0); ; {
		*m = fiemap{start: start, length: ^uint64(0) - start, count: atOnce}
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(m))); no != 0 {
			return nil, no
		}
		if m.mapped == 0 || m.mapped > atOnce {
			break
		}
		for _, x := range m.extents[:m.mapped] {
			if x.flags&extentShared != 0 {
				e.SharedBytes += x.length
			}
			start = x.logical + x.length
		}
		if m.extents[m.mapped-1].flags&extentLast != 0 {
			break
		}
	}
	// The blocks of a file are counted without those that hold its map; what is compressed takes less than it is long.
	e.SharedBytes = min(e.SharedBytes, e.UsedBytes)
	return e, nil
}
