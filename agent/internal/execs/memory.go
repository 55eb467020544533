package execs

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// worthwhile is how much memory the agent may keep without looking what of it is needed, in bytes: somewhat more than it has
// after a few commands.
const worthwhile = 12 << 20

// giveBack gives the machine what the agent needs no more, where it has much. Go would do so at its next collection, for which
// an agent without work has no occasion.
func giveBack() {
	held := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(held)
	if held[0].Value.Uint64()-held[1].Value.Uint64() > worthwhile {
		runtime.GC() // what a pool has is let go by the second one
		debug.FreeOSMemory()
	}
}
