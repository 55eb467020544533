// Package takeover lets another program go on in the place of this one, in the same process: its children stay its children, and PID 1
// stays PID 1.
//
// The state goes through a file in memory: a line of JSON (head), then the commands (execs.Saved). What may not be lost, the pipes and
// terminals, is inherited by number. Connections are not: the host comes back as after any loss.
package takeover

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// Format of the state. One that reads others too lists them.
const Format = 1

// Verb is the argument at which a program says what it could take over.
const Verb = "takes-over"

// variable names the descriptor of the state.
const variable = "NEXUS_AGENT_STATE"

const checkWithin = 20 * time.Second

type claim struct {
	Program string `json:"program"`
	Version string `json:"version"`
	Formats []int  `json:"formats"`
}

type head struct {
	Format  int               `json:"format"`
	AgentID string            `json:"agent_id"`
	Served  map[string]string `json:"served"`
}

// Claim prints what this program could take over.
func Claim(program string) {
	_ = json.NewEncoder(os.Stdout).Encode(claim{program, wire.Version, []int{Format}})
}

// Agent is the program that runs.
type Agent struct {
	Program string // the name under which it claims to take over
	ID      string
	Execs   *execs.Registry
	Table   *proc.Table
	// Available is how much memory there is for programs, in bytes.
	Available func() uint64
	// Served keeps the ports as they are and names them; nil: there are none.
	Served func() (served map[string]string, resume func())

	once sync.Once
	self wire.Agent
	err  error
}

// Self is which program it is.
func (a *Agent) Self() (wire.Agent, error) {
	a.once.Do(func() {
		file, err := os.Open("/proc/self/exe")
		if err != nil {
			a.err = err
			return
		}
		defer file.Close()
		hash := sha256.New()
		_, a.err = io.Copy(hash, file)
		a.self = wire.Agent{Version: wire.Version, Sha256: hex.EncodeToString(hash.Sum(nil))}
	})
	return a.self, a.err
}

// machines are the e_machine of elf(5).
var machines = map[string]uint16{"amd64": 62, "arm64": 183}

// Check says why the program cannot go on in this one's place.
func (a *Agent) Check(program *os.File) error {
	var ident [20]byte
	if _, err := program.ReadAt(ident[:], 0); err != nil || string(ident[:4]) != "\x7fELF" {
		return errors.New("it is no ELF program")
	}
	if is, want := binary.LittleEndian.Uint16(ident[18:]), machines[runtime.GOARCH]; is != want {
		return fmt.Errorf("it is for another processor (machine %d instead of %d)", is, want)
	}
	text, err := a.ask(program)
	if err != nil {
		return fmt.Errorf("it does not say what it takes over: %w", err)
	}
	return a.judge(text)
}

// judge reads what a program claims.
func (a *Agent) judge(text []byte) error {
	var c claim
	if err := json.Unmarshal(text, &c); err != nil || c.Program != a.Program {
		return errors.New("it is no agent of this kind")
	}
	if !slices.Contains(c.Formats, Format) {
		return fmt.Errorf("it cannot read the state of this agent: it knows the formats %v, not %d", c.Formats, Format)
	}
	return nil
}

func (a *Agent) ask(program *os.File) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true},
		Files: []uintptr{null.Fd(), w.Fd(), null.Fd()}}
	child, err := a.Table.Start(path(program), []string{a.Program, Verb}, attr)
	w.Close()
	if err != nil {
		return nil, err
	}
	defer func() { // it must not be there when the next program comes, which would not wait for it
		a.Table.Signal(child, syscall.SIGKILL)
		select {
		case <-child.Done:
		case <-time.After(checkWithin):
		}
	}()
	_ = r.SetReadDeadline(time.Now().Add(checkWithin))
	return io.ReadAll(io.LimitReader(r, 4096))
}

func path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Replace lets the program go on. It returns only if it failed: then everything is as before. What says, until the last moment, that nobody
// waits for it any more, or that the machine goes down, is heeded: neither would be known to the program.
func (a *Agent) Replace(ctx context.Context, program *os.File) error {
	frozen, err := a.Execs.Freeze()
	if err != nil {
		return err
	}
	defer frozen.Thaw()
	// Once in the file and once in the next program: a guest without the room would lose all, by the kernel's hand.
	if need, free := 2*frozen.Size(), a.Available(); need > free {
		detail := fmt.Sprintf("the output of its commands needs %d bytes of memory, and the guest has %d", need, free)
		return &execs.Failure{Status: 409, Code: "conflict", Detail: detail}
	}
	h := head{Format: Format, AgentID: a.ID}
	if a.Served != nil {
		served, resume := a.Served()
		defer resume()
		h.Served = served
	}
	fd, err := unix.MemfdCreate("state", 0)
	if err != nil {
		return fmt.Errorf("the state finds no place: %w", err)
	}
	state := os.NewFile(uintptr(fd), "state")
	defer state.Close()
	if err := write(state, h, frozen); err != nil {
		return fmt.Errorf("the state finds no place: %w", err)
	}
	env := []string{fmt.Sprintf("%s=%d", variable, fd)}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, variable+"=") {
			env = append(env, kv)
		}
	}
	safe.Flush(100 * time.Millisecond)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the update was given up: %w", err)
	}
	if a.Execs.Leaving() {
		return execs.ErrMoving
	}
	return fmt.Errorf("the program cannot be run: %w", syscall.Exec(path(program), os.Args, env))
}

func write(state *os.File, h head, frozen *execs.Frozen) error {
	w := bufio.NewWriterSize(state, 64<<10)
	if err := json.NewEncoder(w).Encode(h); err != nil {
		return err
	}
	if err := frozen.Save(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := state.Seek(0, io.SeekStart)
	return err
}

// State is what the program before has left.
type State struct {
	AgentID string
	Served  map[string]string
	execs   *execs.Saved
}

// Left is the state that the program before has left in this process; nil if there was none. One that cannot be read is lost.
func Left() *State {
	text := os.Getenv(variable)
	if text == "" {
		return nil
	}
	os.Unsetenv(variable)
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // the kernel took the descriptor's number
	s, err := read(text)
	if err != nil {
		safe.Logf("what the agent before has left cannot be read: %v", err)
		return &State{}
	}
	return s
}

func read(number string) (*State, error) {
	var fd int
	if _, err := fmt.Sscanf(number, "%d", &fd); err != nil || fd < 3 {
		return nil, errors.New("it has no number")
	}
	file := os.NewFile(uintptr(fd), "state")
	defer file.Close()
	r := bufio.NewReaderSize(file, 64<<10)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var h head
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, err
	}
	if h.Format != Format {
		return nil, fmt.Errorf("its format is %d", h.Format)
	}
	saved, err := execs.ReadSaved(r)
	return &State{AgentID: h.AgentID, Served: h.Served, execs: saved}, err
}

// Commands makes the table and the registry, with all that ran and is known.
func (s *State) Commands(all bool) (*proc.Table, *execs.Registry) {
	if s == nil || s.execs == nil {
		table := proc.NewTable(all)
		return table, execs.NewRegistry(table)
	}
	children := s.execs.Children()
	table := proc.NewTable(all, children...)
	registry := execs.NewRegistry(table)
	registry.Restore(s.execs, children)
	return table, registry
}
