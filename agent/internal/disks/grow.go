package disks

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ext4ResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
const ext4ResizeFS = 0x40086610

// Grow makes the mounted ext4 as long as its device. The kernel gives up a last group that is too small for its own tables.
func Grow(dev, at string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return err
	}
	blocks, blockSize, err := ext4Size(super)
	if err != nil {
		return err
	}
	want := uint64(size) / blockSize
	if want <= blocks {
		return nil
	}
	root, err := os.Open(at)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, root.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&want))); no != 0 {
		return no
	}
	return nil
}

// ext4Size reads number and size of blocks from a superblock (Documentation/filesystems/ext4/super.rst).
func ext4Size(super []byte) (blocks, blockSize uint64, err error) {
	le := binary.LittleEndian
	const magic, has64bit = 0xef53, 0x80
	shift := le.Uint32(super[0x18:])
	if le.Uint16(super[0x38:]) != magic || shift > 6 {
		return 0, 0, errors.New("the superblock is not ext4's")
	}
	blocks = uint64(le.Uint32(super[0x04:]))
	if le.Uint32(super[0x60:])&has64bit != 0 {
		blocks |= uint64(le.Uint32(super[0x150:])) << 32
	}
	return blocks, 1024 << shift, nil
}
