package execs

import (
	"bytes"
	"context"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/wire"
)

// ended runs a command to its end and gives its entry and a reader that has read nothing.
func ended(t *testing.T, g *Registry, id, digest, script string) (*entry, *Reader) {
	t.Helper()
	r, _, fail := g.Run(wire.Spec{ID: id, Digest: digest, Argv: []string{"/bin/sh", "-c", script}, Stdin: "none", OnDisconnect: "keep"})
	if fail != nil {
		t.Fatal(fail)
	}
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		g.mu.Lock()
		en := g.known[id]
		done := !en.since.IsZero()
		g.mu.Unlock()
		if done {
			return en, r
		}
		if time.Now().After(limit) {
			t.Fatal("it does not end")
		}
	}
}

// next is the registry of the program that comes after.
func next(t *testing.T, g *Registry) *Registry {
	t.Helper()
	frozen, err := g.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Thaw()
	var state bytes.Buffer
	if err := frozen.Save(&state); err != nil {
		t.Fatal(err)
	}
	saved, err := ReadSaved(&state)
	if err != nil {
		t.Fatal(err)
	}
	after := NewRegistry(g.table)
	after.Restore(saved, saved.Children())
	return after
}

func read(t *testing.T, r *Reader) (total int, gap bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	buf := make([]byte, wire.FrameHead+wire.MaxFrame)
	for {
		err := r.Wait(ctx)
		if err == io.EOF {
			return total, gap
		}
		if err != nil {
			t.Fatal(err)
		}
		n := r.Fill(buf)
		gap = gap || buf[0] == wire.Gap
		total += n - wire.FrameHead
	}
}

// What ends while the program before stands still is known to the next, and as long as anything else.
func TestEndWhileFrozenIsKnown(t *testing.T) {
	g := NewRegistry(proc.NewTable(false))
	en, r := ended(t, g, "a", "", "echo out; exit 3")
	r.Detach()
	en.since = time.Time{} // as if it was not in the list of those that ended yet
	g.ended = nil
	after := next(t, g)
	time.Sleep(100 * time.Millisecond)
	e := after.Get("a")
	if e == nil {
		t.Fatal("it is forgotten")
	}
	again, err := e.Attach([2]uint64{})
	if err != nil {
		t.Fatal(err)
	}
	if n, gap := read(t, again); n != 4 || gap || again.Exit().Code != 3 {
		t.Errorf("%d bytes, %v, %v", n, gap, again.Exit())
	}
}

// A slow reader finds all of a command that ended long ago, over a loss of its connection and over another program.
func TestSlowReaderOfWhatEnded(t *testing.T) {
	const size = 500 << 10 // more than is kept without a reader
	for _, digest := range []string{"", "aa"} {
		g := NewRegistry(proc.NewTable(false))
		g.Hold = 20 * time.Second
		en, r := ended(t, g, "a", digest, "head -c 250000 /dev/zero; head -c 250000 /dev/zero; head -c 12000 /dev/zero")
		g.mu.Lock()
		en.since = time.Now().Add(-2 * keepFor)
		g.forgetEnded(en, en.since)
		g.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
		r.Detach()
		time.Sleep(100 * time.Millisecond)
		after := next(t, g)
		time.Sleep(100 * time.Millisecond)
		e := after.Get("a")
		if e == nil {
			t.Fatal("it is forgotten")
		}
		again, err := e.Attach([2]uint64{})
		if err != nil {
			t.Fatal(err)
		}
		if n, gap := read(t, again); n != size || gap {
			t.Errorf("%d bytes, %v", n, gap)
		}
	}
}

// A command that ends with its last reader waits for that as long as all do over a change of the program.
func TestOrphanOverAnotherProgram(t *testing.T) {
	g := NewRegistry(proc.NewTable(false))
	g.OrphanDelay = time.Millisecond
	child, err := g.table.Start("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.table.Signal(child, syscall.SIGKILL)
	x := &savedExec{ID: "a", Pid: child.Pid, Kill: true, Master: -1, Stdin: -1, Outs: [2]int{-1, -1}, Readers: [][3][2]uint64{{}}}
	e := g.restored(x, child, kept{})
	select {
	case <-child.Done:
		t.Fatal("it was killed")
	case <-time.After(300 * time.Millisecond):
	}
	r, err := e.Attach([2]uint64{})
	if err != nil {
		t.Fatal(err)
	}
	r.Detach()
	<-child.Done
}
