package machine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func swapoff(path *byte) {
	_, _, _ = unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(path)), 0, 0)
}
