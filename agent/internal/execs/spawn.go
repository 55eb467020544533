package execs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/account"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// summaryMost bounds what a list says of a command line, in bytes.
const summaryMost = 160

func (g *Registry) start(spec wire.Spec, en *entry) (*Reader, *Failure) {
	who, asRoot, fail := whoRuns(spec.User)
	if fail != nil {
		return nil, fail
	}
	if g.Home != "" {
		who.Home = g.Home
	}
	env := account.Environ("", who, spec.Env)
	argv0 := ""
	if spec.Tty != nil {
		if variable(env, "TERM") == "" {
			env = append(env, "TERM=xterm-256color")
		}
		if len(spec.Argv) == 0 { // as login(1) does it
			spec.Argv, argv0 = []string{who.Shell}, "-"+filepath.Base(who.Shell)
		}
	}
	at, fail := place(spec, who, asRoot, env)
	if fail != nil {
		return nil, fail
	}
	p, tty, err := openStreams(spec, who.UID, asRoot)
	if err != nil {
		return nil, failure("spawn", "Cannot make the standard streams: "+err.Error())
	}
	attr := &syscall.ProcAttr{Dir: at.dir, Env: env, Files: p.child(),
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: tty != nil, Ctty: 0}}
	if asRoot {
		attr.Sys.Credential = &syscall.Credential{Uid: who.UID, Gid: who.GID, Groups: who.Groups}
	}
	argv := spec.Argv
	if argv0 != "" {
		argv = []string{argv0}
	}
	child, err := g.table.Start(at.program, argv, attr)
	p.closeChild()
	if err != nil {
		p.closeOurs()
		if tty != nil {
			tty.close()
		}
		return nil, spawnFailure(err, at.program)
	}
	e := &Exec{ID: spec.ID, Pid: child.Pid, table: g.table, child: child, kill: spec.OnDisconnect == "kill",
		delay: g.OrphanDelay, hold: g.Hold, readers: map[*Reader]struct{}{}, gone: map[*Reader]struct{}{}, stdin: p.stdin, tty: tty,
		command: summary(spec.Argv), session: spec.Session, outs: [2]*os.File{p.stdout, p.stderr}, adrift: &g.adrift}
	e.cond = sync.NewCond(&e.mu)
	r, _ := e.Attach([2]uint64{})
	if spec.TimeoutMs > 0 {
		e.killAt = time.Now().Add(time.Duration(spec.TimeoutMs) * time.Millisecond)
	}
	en.exec = e
	g.follow(en, p.stdin)
	return r, nil
}

// follow goes with a command to its end.
func (g *Registry) follow(en *entry, stdin *os.File) {
	safe.Go(func() {
		en.exec.supervise(stdin)
		<-en.ready
		g.retire(en)
	})
}

func openStreams(spec wire.Spec, uid uint32, own bool) (p *pipes, t *terminal, err error) {
	if spec.Tty != nil {
		return openTerminal(*spec.Tty, uid, own)
	}
	p, err = openPipes(spec.Stdin != "none", uid, own)
	return p, nil, err
}

// summary is the beginning of a command line.
func summary(argv []string) string {
	var b strings.Builder
	for i, a := range argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(a[:min(len(a), summaryMost)])
		if b.Len() > summaryMost {
			break
		}
	}
	text := b.String()
	if len(text) > summaryMost {
		text = text[:summaryMost-3] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

func (e *Exec) item() Item {
	e.mu.Lock()
	defer e.mu.Unlock()
	item := Item{ID: e.ID, Pid: e.Pid, Running: e.exit == nil, Command: e.command, Tty: e.tty != nil, Session: e.session,
		StartedMs: e.child.Started.UnixMilli()}
	switch {
	case e.exit == nil:
	case e.exit.Signal != 0:
		item.Signal = SignalName(int(e.exit.Signal))
	default:
		item.Code = &e.exit.Code
	}
	return item
}

// SignalName is the name of a signal without SIG, or its number where it has none.
func SignalName(n int) string {
	if name := unix.SignalName(unix.Signal(n)); len(name) > 3 {
		return name[3:]
	}
	return strconv.Itoa(n)
}
