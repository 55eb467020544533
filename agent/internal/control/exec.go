package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

var buffers = sync.Pool{New: func() any { return new([wire.FrameHead + wire.MaxFrame]byte) }}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	// What asks again after a lost connection: the agent that was asked first may have run it, and this one would not know.
	if first := r.Header.Get("Nexus-Agent-Id"); first != "" && first != s.Facts().AgentID {
		refuse(w, 412, "conflict", "another agent was asked first, and may have run the command")
		return
	}
	spec, err := wire.ReadSpec(r.Body)
	// A request of its own: an agent that knows no terminals says so, and runs nothing.
	if err == nil && (spec.Tty != nil) != (r.URL.Path == "/v1/terminal") {
		err = errors.New("tty is for /v1/terminal, and for nothing else")
	}
	if err != nil {
		refuse(w, 400, "invalid", err.Error())
		return
	}
	reader, fresh, fail := s.Execs.Run(spec)
	if fail != nil {
		refuse(w, fail.Status, fail.Code, fail.Detail)
		return
	}
	defer reader.Detach()
	if fresh && spec.Stdin == "open" {
		if in := reader.Exec.TakeStdin(); in != nil {
			s.busy.Add(1)
			safe.Go(func() {
				defer s.busy.Add(-1)
				defer in.Close()
				_, _ = feed(in, r.Body)
			})
		}
	}
	mayBeCut(r)
	stream(w, r, reader)
}

func (s *Server) output(w http.ResponseWriter, r *http.Request) {
	e := s.find(w, r)
	if e == nil {
		return
	}
	if text := r.URL.Query().Get("tail"); text != "" {
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			refuse(w, 400, "invalid", "tail must be a number of bytes")
			return
		}
		reader := e.AttachTail(n)
		defer reader.Detach()
		stream(w, r, reader)
		return
	}
	var from [2]uint64
	for i, name := range []string{"stdout", "stderr"} {
		text := r.URL.Query().Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			refuse(w, 400, "invalid", name+" must be a byte offset")
			return
		}
		from[i] = n
	}
	reader, err := e.Attach(from)
	if err != nil {
		refuse(w, 400, "invalid", err.Error())
		return
	}
	defer reader.Detach()
	stream(w, r, reader)
}

// stream sends frames until the command's end, then how it ended. A handler that cannot go on to the end resets its stream:
// an answer without trailers is no result.
func stream(w http.ResponseWriter, r *http.Request, reader *execs.Reader) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Nexus-Exec-Id", reader.Exec.ID)
	w.Header().Set("Nexus-Exec-Pid", strconv.Itoa(reader.Exec.Pid))
	from := reader.From()
	w.Header().Set("Nexus-Exec-From", fmt.Sprintf("%d %d", from[0], from[1]))
	w.WriteHeader(200)
	flush := http.NewResponseController(w).Flush
	_ = flush()
	for {
		err := reader.Wait(r.Context())
		if err == io.EOF {
			break
		}
		if err == nil {
			err = send(w, reader)
		}
		if err == nil && !reader.More() {
			err = flush()
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	exit := reader.Exit()
	set := func(name, value string) { w.Header().Set(http.TrailerPrefix+name, value) }
	if exit.Signal != 0 {
		set("Nexus-Exit-Signal", execs.SignalName(int(exit.Signal)))
	} else {
		set("Nexus-Exit-Code", strconv.Itoa(exit.Code))
	}
	timedOut := "0"
	if exit.TimedOut {
		timedOut = "1"
	}
	set("Nexus-Timed-Out", timedOut)
	set("Nexus-Duration-Us", strconv.FormatInt(exit.Duration.Microseconds(), 10))
}

// send writes what the reader has. It holds a buffer no longer than that takes: a silent command costs none.
func send(w io.Writer, reader *execs.Reader) error {
	buf := buffers.Get().(*[wire.FrameHead + wire.MaxFrame]byte)
	defer buffers.Put(buf)
	_, err := w.Write(buf[:reader.Fill(buf[:])])
	return err
}

func (s *Server) stdin(w http.ResponseWriter, r *http.Request) {
	e := s.find(w, r)
	if e == nil {
		return
	}
	if e.HasTerminal() {
		typeInto(w, r, e)
		return
	}
	in := e.TakeStdin()
	if in == nil {
		refuse(w, 409, "conflict", "the command has no standard input, or it has a writer already")
		return
	}
	n, err := feed(in, r.Body)
	in.Close()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	answer(w, 200, map[string]int64{"bytes": n})
}

// typeInto is one of several writers to a terminal; its end is no end of file. One that goes away while it waits is ended.
func typeInto(w http.ResponseWriter, r *http.Request, e *execs.Exec) {
	in, done, err := e.Input()
	if err != nil {
		refuse(w, 404, "not_found", err.Error())
		return
	}
	defer done()
	stop := context.AfterFunc(r.Context(), func() { _ = in.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200) // the writer waits for this before it sends
	_ = http.NewResponseController(w).Flush()
	mayBeCut(r)
	n, err := feed(in, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(map[string]int64{"bytes": n})
}

func (s *Server) resize(w http.ResponseWriter, r *http.Request) {
	var size wire.Size
	if !read(w, r, &size) {
		return
	}
	if !size.Valid() {
		refuse(w, 400, "invalid", "cols and rows must be 1 to 65535")
		return
	}
	e := s.find(w, r)
	if e == nil {
		return
	}
	if err := e.Resize(size); err != nil {
		refuse(w, 409, "conflict", err.Error())
		return
	}
	w.WriteHeader(204)
}

// feed writes body to the command's standard input. The error is the body's: a command that closes its input is no error.
func feed(in *os.File, body io.Reader) (int64, error) {
	buf := make([]byte, 16<<10)
	var total int64
	for {
		n, err := body.Read(buf)
		if n > 0 {
			m, werr := in.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, nil
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (s *Server) signal(w http.ResponseWriter, r *http.Request) {
	var p struct {
		Signal string `json:"signal"`
	}
	if !read(w, r, &p) {
		return
	}
	sig := unix.SignalNum("SIG" + p.Signal)
	if sig == 0 {
		refuse(w, 400, "invalid", "there is no such signal")
		return
	}
	e := s.find(w, r)
	if e == nil {
		return
	}
	if !e.Signal(sig) {
		refuse(w, 404, "not_found", "the command has ended")
		return
	}
	w.WriteHeader(204)
}

func (s *Server) find(w http.ResponseWriter, r *http.Request) *execs.Exec {
	e := s.Execs.Get(r.PathValue("id"))
	if e == nil {
		refuse(w, 404, "not_found", "there is no such exec")
	}
	return e
}
