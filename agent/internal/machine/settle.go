package machine

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/wire"
)

// From linux/random.h; golang.org/x/sys has them not.
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
)

// clockNear is how far a clock may be off that is left alone: something in the guest may keep it better than we do.
const clockNear = 500 * time.Millisecond

// Clock is the time, in microseconds since 1970.
func Clock() int64 { return time.Now().UnixMicro() }

// StepClock puts the clock forward by so many microseconds, or back.
func StepClock(byUs int64) error {
	ts := unix.NsecToTimespec(time.Now().UnixNano() + byUs*1000)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// Settle sets clock, entropy and host name, each where it is given. Entropy comes first: what runs next may need it.
func Settle(s wire.Settle) error {
	if len(s.Entropy) > 0 {
		if err := addEntropy(s.Entropy); err != nil {
			return fmt.Errorf("cannot add entropy: %w", err)
		}
	}
	if off := time.Until(time.UnixMilli(s.ClockMs)); s.ClockMs > 0 && off.Abs() > clockNear {
		if err := StepClock(off.Microseconds()); err != nil {
			return err
		}
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("cannot set the host name: %w", err)
		}
	}
	return nil
}

// addEntropy credits the bytes and makes the kernel use them at once: clones of one saved machine share its generator.
func addEntropy(b []byte) error {
	fd, err := unix.Open("/dev/urandom", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct rand_pool_info: bits, bytes, data
	info := make([]byte, 8, 8+len(b))
	binary.NativeEndian.PutUint32(info, uint32(8*len(b)))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(b)))
	info = append(info, b...)
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), rndAddEntropy, uintptr(unsafe.Pointer(&info[0]))); no != 0 {
		return no
	}
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), rndReseedCRNG, 0); no != 0 {
		return no
	}
	return nil
}

// SetHostname gives the machine the name from the command line, else the image's own.
func SetHostname(name string) error {
	if name == "" {
		if now, err := os.Hostname(); err == nil && now != "(none)" {
			return nil
		}
		name = strings.TrimSpace(files.Small("/etc/hostname"))
	}
	if name == "" || len(name) > 64 {
		return nil
	}
	return unix.Sethostname([]byte(name))
}
