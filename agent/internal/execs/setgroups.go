package execs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func setgroups(n int, at *uint32) error {
	if _, _, no := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(at)), 0); no != 0 {
		return no
	}
	return nil
}
