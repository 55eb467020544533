package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/facts"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/wire"
)

// table is one for all tests: each table collects the children it knows alone.
var table = proc.NewTable(false)

type system struct {
	power chan wire.Power
	offUs atomic.Int64
	panic bool
}

func (s *system) Settle(wire.Settle) error {
	if s.panic {
		panic("a fault of the agent")
	}
	return nil
}

func (s *system) Clock() int64 { return time.Now().UnixMicro() + s.offUs.Load() }

func (s *system) StepClock(byUs int64) error {
	if s.panic {
		return errors.New("cannot set the clock: operation not permitted")
	}
	s.offUs.Add(byUs)
	return nil
}

func (s *system) Grow(device string, size int64) (string, error) {
	switch device {
	case "vda":
		return "/", nil
	case "vdb":
		return "", disks.ErrNotMounted
	}
	return "", fmt.Errorf("no %s of %d bytes", device, size)
}

func (s *system) Power(kind string, grace time.Duration) {
	s.power <- wire.Power{Kind: kind, GraceMs: grace.Milliseconds()}
}

type guest struct {
	*testing.T
	server *Server
	system *system
	path   string
	conn   *http2.ClientConn
	raw    net.Conn
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	sys := &system{power: make(chan wire.Power, 1)}
	g := &guest{T: t, system: sys, path: filepath.Join(t.TempDir(), "s"),
		server: &Server{Execs: execs.NewRegistry(table), System: sys, Facts: func() wire.Facts { return facts.Gather("00") }}}
	l, err := net.Listen("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.server.Serve(c)
		}
	}()
	g.dial()
	t.Cleanup(func() {
		for _, item := range g.server.Execs.List() {
			if item.Running {
				g.server.Execs.Get(item.ID).Signal(syscall.SIGKILL)
			}
		}
		g.raw.Close()
		l.Close()
	})
	return g
}

func (g *guest) dial() {
	g.Helper()
	raw, err := net.Dial("unix", g.path)
	if err != nil {
		g.Fatal(err)
	}
	conn, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(raw)
	if err != nil {
		g.Fatal(err)
	}
	g.raw, g.conn = raw, conn
}

type reply struct {
	status         int
	body           []byte
	out            [2][]byte
	gaps           [2]uint64
	trailer        http.Header
	pid, code, sig string
}

func (g *guest) begin(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://nexus"+path, body)
	if err != nil {
		g.Fatal(err)
	}
	return g.conn.RoundTrip(req)
}

func (g *guest) ask(method, path string, body io.Reader) reply {
	g.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	res, err := g.begin(ctx, method, path, body)
	if err != nil {
		g.Fatal(err)
	}
	return g.finish(res)
}

func (g *guest) finish(res *http.Response) reply {
	g.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		g.Fatal(err)
	}
	r := reply{status: res.StatusCode, body: body, trailer: res.Trailer, pid: res.Header.Get("Nexus-Exec-Pid"),
		code: res.Trailer.Get("Nexus-Exit-Code"), sig: res.Trailer.Get("Nexus-Exit-Signal")}
	for b := body; r.pid != "" && len(b) > 0; {
		n := int(binary.BigEndian.Uint32(b[1:]))
		data := b[wire.FrameHead : wire.FrameHead+n]
		if b[0] == wire.Gap {
			r.gaps[data[0]-1] += binary.BigEndian.Uint64(data[1:])
		} else {
			r.out[b[0]-1] = append(r.out[b[0]-1], data...)
		}
		b = b[wire.FrameHead+n:]
	}
	return r
}

var serial atomic.Int64

func spec(set func(*wire.Spec), argv ...string) (string, *bytes.Buffer) {
	s := wire.Spec{ID: fmt.Sprintf("exec_%d", serial.Add(1)), Argv: argv, Stdin: "none", OnDisconnect: "keep"}
	if set != nil {
		set(&s)
	}
	b, _ := json.Marshal(s)
	return s.ID, bytes.NewBuffer(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
}

func (g *guest) run(set func(*wire.Spec), argv ...string) reply {
	g.Helper()
	_, body := spec(set, argv...)
	return g.ask("POST", "/v1/exec", body)
}

func (g *guest) signal(id, name string) int {
	g.Helper()
	return g.ask("POST", "/v1/exec/"+id+"/signal", strings.NewReader(`{"signal":"`+name+`"}`)).status
}
