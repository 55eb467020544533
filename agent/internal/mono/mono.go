// Package mono carries points in time from one program of a process to the next: the monotonic reading of Go's times does not.
package mono

import (
	"time"

	"golang.org/x/sys/unix"
)

func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// Stamp is t by CLOCK_MONOTONIC, in nanoseconds; 0 for no time.
func Stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return now() - int64(time.Since(t))
}

// Time is the time of a stamp.
func Time(stamp int64) time.Time {
	if stamp == 0 {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(stamp - now()))
}
