// Package safe keeps one failing goroutine from ending the process, which as PID 1 would end the machine.
package safe

import (
	"fmt"
	"os"
	"runtime/debug"
)

// Logf writes one line to standard error, which is the console where the agent is PID 1.
func Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "nexus: "+format+"\n", args...)
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
