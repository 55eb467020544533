package probe

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

func rdtsc() uint64

// TSC is the answer of `nexus-probe tsc`: the rate of this machine's time stamp counter.
type TSC struct {
	KHz    *int64 `json:"khz"`
	Detail string `json:"detail,omitempty"`
}

const tscSpan = 100 * time.Millisecond

// MeasureTSC counts ticks of about 100 ms of the monotonic clock. `cpu MHz` of /proc/cpuinfo is the momentary frequency of a
// core and not the counter's.
func MeasureTSC() TSC {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns0, ticks0, ok0 := sample()
	time.Sleep(tscSpan)
	ns1, ticks1, ok1 := sample()
	if !ok0 || !ok1 || ns1 <= ns0 || ticks1 <= ticks0 {
		return TSC{Detail: "the clock or the counter does not advance"}
	}
	khz := int64(float64(ticks1-ticks0)*1e6/float64(ns1-ns0) + 0.5)
	if khz < 100_000 || khz > 100_000_000 {
		return TSC{Detail: "the counter's rate is out of reason"}
	}
	return TSC{KHz: &khz}
}

// sample pairs a time with a count: of many tries the one with the least between two looks at the clock, for anything may
// come between.
func sample() (ns int64, ticks uint64, ok bool) {
	best := int64(1) << 62
	for range 64 {
		a := rawClock()
		t := rdtsc()
		b := rawClock()
		if d := b - a; d >= 0 && d < best {
			best, ns, ticks = d, a+d/2, t
		}
	}
	return ns, ticks, best < int64(10*time.Microsecond)
}

func rawClock() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
		return 0
	}
	return ts.Nano()
}
