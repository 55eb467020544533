package execs

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/wire"
)

const (
	keepEnded = 64
	keepFor   = 60 * time.Second
	// keepDigests and keepDigestFor bound commands with a digest that ended: of them is known how, so that none runs twice.
	keepDigests   = 1024
	keepDigestFor = 10 * time.Minute
	// holdFor is how long a command is held for a reader that went away before the end.
	holdFor = 2 * time.Second
	// holdOver is the same over a change of the agent's program, which takes the connections with it.
	holdOver = 15 * time.Second
	// maxRunning bounds commands that go on without a reader.
	maxRunning = 1024
)

// Failure is why a command was not started: a status of HTTP, a code of the protocol and a sentence.
type Failure struct {
	Status int
	Code   string
	Detail string
}

func (f *Failure) Error() string { return f.Detail }

func failure(code, detail string) *Failure { return &Failure{Status: 422, Code: code, Detail: detail} }

// Registry knows the commands that run and those that ended a short time ago.
type Registry struct {
	// OrphanDelay is how long a command with on_disconnect kill outlives its last reader.
	OrphanDelay time.Duration
	// Hold is how long a command waits for a reader that went away.
	Hold time.Duration
	// Home stands for every user's home where it is not empty: a test on somebody's machine reads none of their files.
	Home string

	table *proc.Table

	leaving atomic.Bool // the machine is going down, or is about to

	mu       sync.Mutex
	known    map[string]*entry
	sessions map[string]*entry
	ended    []*entry // oldest first
	digested []*entry // ended with a digest before those, without their output
	adrift   adrift
	running  int
	retired  uint64 // how many there were
	closed   bool
}

// entry is in the registry before its command is started, so that a second request with its id waits for the first.
type entry struct {
	ready  chan struct{} // closed when exec or failure is set
	exec   *Exec
	fail   *Failure
	digest string
	since  time.Time // in the list that it is in
}

// Item is one line of GET /v1/execs.
type Item struct {
	ID        string `json:"id"`
	Pid       int    `json:"pid"`
	Running   bool   `json:"running"`
	Command   string `json:"command"`
	Tty       bool   `json:"tty"`
	Session   string `json:"session,omitempty"`
	StartedMs int64  `json:"started_ms"`
	Code      *int   `json:"exit_code,omitempty"`
	Signal    string `json:"exit_signal,omitempty"`
}

// NewRegistry makes an empty registry that starts its commands through table.
func NewRegistry(table *proc.Table) *Registry {
	return &Registry{table: table, known: map[string]*entry{}, sessions: map[string]*entry{}, OrphanDelay: 10 * time.Second, Hold: holdFor,
		adrift: adrift{files: map[*os.File]struct{}{}}}
}

// Leave says that Close will follow; unlike that it does not wait.
func (g *Registry) Leave() { g.leaving.Store(true) }

// Leaving says whether it does.
func (g *Registry) Leaving() bool { return g.leaving.Load() }

// Close lets no further command start.
func (g *Registry) Close() {
	g.Leave()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// End ends the commands that run, and lets no further one start: SIGTERM, and SIGKILL after the grace.
func (g *Registry) End(grace time.Duration) {
	g.Close()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		g.signalAll(sig)
	}
	for deadline := time.Now().Add(grace); g.signalAll(0) > 0; time.Sleep(5 * time.Millisecond) {
		if !time.Now().Before(deadline) {
			g.signalAll(syscall.SIGKILL)
			return
		}
	}
}

// signalAll signals the commands that run and counts them.
func (g *Registry) signalAll(sig syscall.Signal) (count int) {
	for _, item := range g.List() {
		if e := g.Get(item.ID); e != nil && e.Signal(sig) {
			count++
		}
	}
	return count
}

// Get finds a command by its id.
func (g *Registry) Get(id string) *Exec {
	g.mu.Lock()
	en := g.known[id]
	g.mu.Unlock()
	if en == nil {
		return nil
	}
	<-en.ready
	return en.exec
}

// List names the commands that run or ended a short time ago.
func (g *Registry) List() []Item {
	g.mu.Lock()
	all := make([]*entry, 0, len(g.known))
	for _, en := range g.known {
		all = append(all, en)
	}
	g.mu.Unlock()
	items := []Item{}
	for _, en := range all {
		<-en.ready
		if e := en.exec; e != nil {
			items = append(items, e.item())
		}
	}
	return items
}

// Run starts the command, or finds the one that already has its id; fresh says which. The reader is attached from the
// first byte: before a fresh command can write any.
func (g *Registry) Run(spec wire.Spec) (r *Reader, fresh bool, fail *Failure) {
	g.mu.Lock()
	if en := g.find(spec); en != nil {
		g.mu.Unlock()
		<-en.ready
		if en.fail != nil {
			return nil, false, en.fail
		}
		if spec.Tail > 0 {
			return en.exec.AttachTail(uint64(spec.Tail)), false, nil
		}
		r, _ = en.exec.Attach([2]uint64{})
		return r, false, nil
	}
	if en := g.known[spec.ID]; en != nil {
		g.mu.Unlock()
		return nil, false, &Failure{409, "exists", "another command was run under this ID"}
	}
	if g.closed {
		g.mu.Unlock()
		return nil, false, &Failure{409, "conflict", "the machine is going down"}
	}
	if g.running >= maxRunning {
		g.mu.Unlock()
		return nil, false, &Failure{429, "too_many", "too many commands are running"}
	}
	en := &entry{ready: make(chan struct{}), digest: spec.Digest}
	g.known[spec.ID] = en
	if spec.Session != "" {
		g.sessions[spec.Session] = en
	}
	g.running++
	g.mu.Unlock()

	defer close(en.ready)
	defer func() {
		if en.exec == nil {
			if en.fail == nil { // a panic is on its way up
				en.fail = &Failure{500, "internal", "the agent failed to start the command"}
			}
			g.forget(spec, en)
		}
	}()
	r, en.fail = g.start(spec, en)
	return r, true, en.fail
}

// find is the command that a request means, if it is known: the one with its ID, unless that was asked for in other words, or
// the one that runs under its session's name. The lock is held.
func (g *Registry) find(spec wire.Spec) *entry {
	if en := g.known[spec.ID]; en != nil {
		if en.digest != spec.Digest {
			return nil
		}
		return en
	}
	en := g.sessions[spec.Session]
	if en == nil {
		return nil
	}
	select {
	case <-en.ready:
		if en.exec == nil || !en.exec.Running() { // about to be retired
			return nil
		}
	default:
	}
	return en
}

func (g *Registry) forget(spec wire.Spec, en *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.known, spec.ID)
	g.leaveSession(spec.Session, en)
	g.running--
}

func (g *Registry) leaveSession(name string, en *entry) {
	if g.sessions[name] == en {
		delete(g.sessions, name)
	}
}
