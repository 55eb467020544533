// Tells what it costs to fork, exec and wait for a program: microseconds, a line for each time.
// usage: spawn <times> <program> [argument...]
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

func main() {
	times, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	runtime.LockOSThread()
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}}
	for range times {
		from := time.Now()
		pid, err := syscall.ForkExec(os.Args[2], os.Args[2:], attr)
		if err != nil {
			panic(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			panic(err)
		}
		fmt.Println(time.Since(from).Microseconds())
	}
}
