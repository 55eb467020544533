// Package safe keeps one failing goroutine from ending the process, which as PID 1 would end the machine, and one slow
// console from holding the rest.
package safe

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// console is standard error, which is the machine's console where the agent is PID 1. Nobody may be reading that: then a
// writer waits for ever, and it must not be one that has other work. Lines that find no room are dropped.
var console struct {
	once  sync.Once
	lines chan func()
}

func enqueue(f func()) bool {
	console.once.Do(func() {
		console.lines = make(chan func(), 64)
		go func() {
			for f := range console.lines {
				f()
			}
		}()
	})
	select {
	case console.lines <- f:
		return true
	default:
		return false
	}
}

// Logf writes one line to standard error, in its turn.
func Logf(format string, args ...any) {
	line := fmt.Sprintf("nexus: "+format+"\n", args...)
	enqueue(func() { _, _ = os.Stderr.WriteString(line) })
}

// Flush waits until the lines before it are written, as long as limit at most.
func Flush(limit time.Duration) {
	done := make(chan struct{})
	if enqueue(func() { close(done) }) {
		Within(limit, func() { <-done })
	}
}

// Within runs f and waits for it, as long as limit at most.
func Within(limit time.Duration, f func()) {
	done := make(chan struct{})
	Go(func() {
		defer close(done)
		f()
	})
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// Go runs f in a goroutine whose panic is printed and goes no further.
func Go(f func()) {
	go func() {
		defer Recover()
		f()
	}()
}

// Recover is deferred; it prints a panic and lets the goroutine end.
func Recover() {
	if r := recover(); r != nil {
		Logf("panic: %v\n%s", r, debug.Stack())
	}
}
