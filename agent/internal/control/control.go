// Package control answers the host on a control stream.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/facts"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// System is what the agent does to the machine it runs in.
type System interface {
	// Settle sets clock, entropy and host name.
	Settle(wire.Settle) error
	// Clock is the time, in microseconds since 1970.
	Clock() int64
	// StepClock puts the clock forward by so many microseconds, or back.
	StepClock(byUs int64) error
	// Grow grows the file system on a disk (vdb), once that is as long as size, and gives the place where it is mounted;
	// disks.ErrNotMounted if it is not.
	Grow(device string, size int64) (string, error)
	// Power takes the machine down. It is called in a goroutine of its own and need not return.
	Power(kind string, grace time.Duration)
}

// Server answers control requests on any number of connections.
type Server struct {
	Execs  *execs.Registry
	Facts  func() wire.Facts
	System System
	// Successor puts another program in the agent's place; nil: none can be.
	Successor Successor

	once sync.Once
	mux  *http.ServeMux
	// busy counts the requests that must not be cut off, of all connections.
	busy     atomic.Int32
	updating atomic.Bool
}

// Serve speaks HTTP/2 on one connection until it ends, and closes it.
func (s *Server) Serve(conn net.Conn) {
	s.once.Do(s.routes)
	defer conn.Close()
	h2 := &http2.Server{
		MaxConcurrentStreams:         wire.Streams,
		MaxUploadBufferPerStream:     wire.StreamWindow,
		MaxUploadBufferPerConnection: wire.ConnWindow,
	}
	long := new(atomic.Int32)
	h2.ServeConn(conn, &http2.ServeConnOpts{
		BaseConfig: &http.Server{ErrorLog: log.New(logWriter{}, "", 0), MaxHeaderBytes: 16 << 10},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			at := &request{long: long, busy: &s.busy}
			defer at.settle()
			s.busy.Add(1)
			s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, at)))
		}),
	})
}

type logWriter struct{}

func (logWriter) Write(p []byte) (int, error) {
	safe.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func (s *Server) routes() {
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("GET /v1/ping", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	s.mux.HandleFunc("GET /v1/facts", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, s.Facts()) })
	s.mux.HandleFunc("GET /v1/now", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, facts.Now()) })
	s.mux.HandleFunc("POST /v1/exec", long(s.exec))
	s.mux.HandleFunc("POST /v1/terminal", long(s.exec))
	s.mux.HandleFunc("GET /v1/exec/{id}/output", long(cuttable(s.output)))
	s.mux.HandleFunc("POST /v1/exec/{id}/stdin", long(s.stdin))
	s.mux.HandleFunc("POST /v1/exec/{id}/signal", s.signal)
	s.mux.HandleFunc("POST /v1/exec/{id}/resize", s.resize)
	s.mux.HandleFunc("POST /v1/port", long(cuttable(s.port)))
	s.mux.HandleFunc("GET /v1/execs", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"execs": s.Execs.List()})
	})
	s.fsRoutes()
	s.mux.HandleFunc("POST /v1/power", s.power)
	s.mux.HandleFunc("POST /v1/settle", s.settle)
	s.mux.HandleFunc("GET /v1/clock", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, wire.Clock{ClockUs: s.System.Clock()})
	})
	s.mux.HandleFunc("POST /v1/clock", s.stepClock)
	if s.Successor != nil {
		s.mux.HandleFunc("GET /v1/agent", s.agent)
		s.mux.HandleFunc("POST /v1/update", s.update)
	}
	s.mux.HandleFunc("POST /v1/disks/grow", s.grow)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, 404, "not_found", "the agent does not know this request")
	})
}

type requestKey struct{}

// request is what is counted of one.
type request struct {
	long *atomic.Int32 // of its connection
	busy *atomic.Int32 // of the agent
	cut  bool
}

func (q *request) settle() {
	if !q.cut {
		q.cut = true
		q.busy.Add(-1)
	}
}

func requestOf(r *http.Request) *request { return r.Context().Value(requestKey{}).(*request) }

// mayBeCut says that from now on the request may be broken off without harm: the host knows how to go on.
func mayBeCut(r *http.Request) { requestOf(r).settle() }

// cuttable is a handler whose requests may be broken off at any time.
func cuttable(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		mayBeCut(r)
		h(w, r)
	}
}

// long counts the streams that may stay open for long, so that some are always left for the short ones.
func long(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n := requestOf(r).long
		defer n.Add(-1)
		if n.Add(1) > wire.LongStreams {
			refuse(w, 429, "too_many", "too many commands and files are open on this connection")
			return
		}
		h(w, r)
	}
}

func (s *Server) power(w http.ResponseWriter, r *http.Request) {
	var p wire.Power
	if !read(w, r, &p) {
		return
	}
	if (p.Kind != "poweroff" && p.Kind != "reboot") || p.GraceMs < 0 || p.GraceMs > 3_600_000 {
		refuse(w, 400, "invalid", "kind must be poweroff or reboot, grace_ms 0 to 3600000")
		return
	}
	w.WriteHeader(202)
	_ = http.NewResponseController(w).Flush()
	safe.Go(func() { s.System.Power(p.Kind, time.Duration(p.GraceMs)*time.Millisecond) })
}

func (s *Server) settle(w http.ResponseWriter, r *http.Request) {
	var p wire.Settle
	if !read(w, r, &p) {
		return
	}
	if p.ClockMs < 0 || p.ClockMs > 1<<43 || len(p.Entropy) > 4096 || !validHostname(p.Hostname) {
		refuse(w, 400, "invalid", "clock_ms, entropy (at most 4096 bytes) or hostname is not valid")
		return
	}
	if err := s.System.Settle(p); err != nil {
		refuse(w, 500, "internal", err.Error())
		return
	}
	w.WriteHeader(204)
}

func (s *Server) stepClock(w http.ResponseWriter, r *http.Request) {
	var p wire.Step
	if !read(w, r, &p) {
		return
	}
	if !p.Valid() {
		refuse(w, 400, "invalid", "by_us is out of range")
		return
	}
	if err := s.System.StepClock(p.ByUs); err != nil {
		refuse(w, 500, "internal", err.Error())
		return
	}
	answer(w, 200, wire.Clock{ClockUs: s.System.Clock()})
}

func (s *Server) grow(w http.ResponseWriter, r *http.Request) {
	var p wire.Grow
	if !read(w, r, &p) {
		return
	}
	path, err := s.System.Grow(p.Device, p.SizeBytes)
	switch {
	case errors.Is(err, disks.ErrNotMounted):
		refuse(w, 409, "conflict", err.Error())
	case err != nil:
		refuse(w, 500, "internal", err.Error())
	default:
		answer(w, 200, wire.Grown{Path: path})
	}
}

func validHostname(s string) bool {
	if len(s) > 64 { // __NEW_UTS_LEN
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '/' {
			return false
		}
	}
	return true
}

// read decodes a JSON body into v, or answers why it cannot.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(io.LimitReader(r.Body, wire.MaxJSON+1))
	if err == nil && len(body) <= wire.MaxJSON {
		if err = json.Unmarshal(body, v); err == nil {
			return true
		}
	}
	detail := "the body is longer than 64 KiB"
	if err != nil {
		detail = "the body is not valid: " + err.Error()
	}
	refuse(w, 400, "invalid", detail)
	return false
}

func refuse(w http.ResponseWriter, status int, code, detail string) {
	answer(w, status, wire.Fault{Code: code, Detail: detail})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
