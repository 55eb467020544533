package execs

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/account"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

const (
	keepEnded = 64
	keepFor   = 60 * time.Second
	// holdFor is how long a command is held for a reader that went away before the end.
	holdFor = 2 * time.Second
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

	table *proc.Table

	mu      sync.Mutex
	known   map[string]*entry
	ended   []*entry // oldest first
	running int
	closed  bool
}

// entry is in the registry before its command is started, so that a second request with its id waits for the first.
type entry struct {
	ready chan struct{} // closed when exec or failure is set
	exec  *Exec
	fail  *Failure
}

// Item is one line of GET /v1/execs.
type Item struct {
	ID      string `json:"id"`
	Pid     int    `json:"pid"`
	Running bool   `json:"running"`
}

// NewRegistry makes an empty registry that starts its commands through table.
func NewRegistry(table *proc.Table) *Registry {
	return &Registry{table: table, known: map[string]*entry{}, OrphanDelay: 10 * time.Second, Hold: holdFor}
}

// Close lets no further command start.
func (g *Registry) Close() {
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
			items = append(items, Item{e.ID, e.Pid, e.Running()})
		}
	}
	return items
}

// Run starts the command, or finds the one that already has its id; fresh says which. The reader is attached from the
// first byte: before a fresh command can write any.
func (g *Registry) Run(spec wire.Spec) (r *Reader, fresh bool, fail *Failure) {
	g.mu.Lock()
	if en := g.known[spec.ID]; en != nil {
		g.mu.Unlock()
		<-en.ready
		if en.fail != nil {
			return nil, false, en.fail
		}
		r, _ = en.exec.Attach([2]uint64{})
		return r, false, nil
	}
	if g.closed {
		g.mu.Unlock()
		return nil, false, &Failure{409, "conflict", "the machine is going down"}
	}
	if g.running >= maxRunning {
		g.mu.Unlock()
		return nil, false, &Failure{429, "too_many", "too many commands are running"}
	}
	en := &entry{ready: make(chan struct{})}
	g.known[spec.ID] = en
	g.running++
	g.mu.Unlock()

	defer close(en.ready)
	defer func() {
		if en.exec == nil {
			if en.fail == nil { // a panic is on its way up
				en.fail = &Failure{500, "internal", "the agent failed to start the command"}
			}
			g.forget(spec.ID)
		}
	}()
	r, en.fail = g.start(spec, en)
	if r != nil {
		en.exec = r.Exec
	}
	return r, true, en.fail
}

func (g *Registry) forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.known, id)
	g.running--
}

// retire moves an entry to those that ended and drops the oldest.
func (g *Registry) retire(en *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	g.ended = append(g.ended, en)
	if len(g.ended) > keepEnded {
		g.dropOldest()
	}
	time.AfterFunc(2*holdFor, func() {
		defer safe.Recover()
		en.exec.trim()
	})
	time.AfterFunc(keepFor, func() {
		defer safe.Recover()
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.ended) > 0 && g.ended[0] == en { // else dropped before: entries leave in the order they came
			g.dropOldest()
		}
	})
}

func (g *Registry) dropOldest() {
	delete(g.known, g.ended[0].exec.ID)
	g.ended[0] = nil
	g.ended = g.ended[1:]
}

func (g *Registry) start(spec wire.Spec, en *entry) (*Reader, *Failure) {
	who, asRoot, fail := whoRuns(spec.User)
	if fail != nil {
		return nil, fail
	}
	env := account.Environ("", who, spec.Env)
	at, fail := place(spec, who, asRoot, env)
	if fail != nil {
		return nil, fail
	}
	p, err := openPipes(spec.Stdin != "none", who.UID, asRoot)
	if err != nil {
		return nil, failure("spawn", "Cannot make pipes: "+err.Error())
	}
	attr := &syscall.ProcAttr{Dir: at.dir, Env: env, Files: p.child(), Sys: &syscall.SysProcAttr{Setsid: true}}
	if asRoot {
		attr.Sys.Credential = &syscall.Credential{Uid: who.UID, Gid: who.GID, Groups: who.Groups}
	}
	child, err := g.table.Start(at.program, spec.Argv, attr)
	p.closeChild()
	if err != nil {
		p.closeOurs()
		return nil, spawnFailure(err, at.program)
	}
	e := &Exec{ID: spec.ID, Pid: child.Pid, table: g.table, child: child, kill: spec.OnDisconnect == "kill",
		delay: g.OrphanDelay, hold: g.Hold, readers: map[*Reader]struct{}{}, gone: map[*Reader]struct{}{}, stdin: p.stdin}
	e.cond = sync.NewCond(&e.mu)
	r, _ := e.Attach([2]uint64{})
	timeout := time.Duration(spec.TimeoutMs) * time.Millisecond
	safe.Go(func() {
		e.supervise(timeout, p.stdin, [2]*os.File{p.stdout, p.stderr})
		<-en.ready
		g.retire(en)
	})
	return r, nil
}
