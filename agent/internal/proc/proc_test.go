package proc

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func start(t *testing.T, table *Table, script string) *Child {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c, err := table.Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}})
	if err != nil {
		t.Error(err)
		return nil
	}
	return c
}

func await(t *testing.T, c *Child) {
	t.Helper()
	select {
	case <-c.Done:
	case <-time.After(30 * time.Second):
		t.Errorf("%d does not end", c.Pid)
	}
}

// As PID 1: many children and orphans at once; each status comes to its owner, and nothing is left.
func TestReaper(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip("cannot inherit orphans: ", err)
	}
	table := NewTable(true)
	if !table.Empty() {
		t.Fatal("there are children before the first")
	}
	var all sync.WaitGroup
	for i := range 60 {
		all.Add(1)
		go func() {
			defer all.Done()
			// The orphan ends after its parent, with a status that must go to nobody.
			c := start(t, table, fmt.Sprintf("(sleep 0.1; exit 99) & exit %d", i))
			if c == nil {
				return
			}
			await(t, c)
			if got := c.Status.ExitStatus(); got != i {
				t.Errorf("status %d, want %d", got, i)
			}
		}()
	}
	all.Wait()
	for deadline := time.Now().Add(20 * time.Second); !table.Empty(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("orphans are not collected")
		}
	}
	t.Run("a program that is missing", func(t *testing.T) {
		if _, err := table.Start("/nonexistent", []string{"x"}, &syscall.ProcAttr{}); err != syscall.ENOENT {
			t.Errorf("%v", err)
		}
	})
	t.Run("signals reach the group, and nobody after its end", func(t *testing.T) {
		c := start(t, table, "sleep 100 & wait")
		if !table.Signal(c, syscall.SIGKILL) {
			t.Fatal("no signal was sent")
		}
		await(t, c)
		if c.Status.Signal() != syscall.SIGKILL {
			t.Errorf("%v", c.Status)
		}
		if table.Signal(c, syscall.SIGKILL) {
			t.Error("a signal was sent to a process that is gone")
		}
		for deadline := time.Now().Add(20 * time.Second); !table.Empty(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the group's other process lives on")
			}
		}
	})
}
