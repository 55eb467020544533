package control

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

var buffers = sync.Pool{New: func() any { return new([wire.FrameHead + wire.MaxFrame]byte) }}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	spec, err := wire.ReadSpec(r.Body)
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
			safe.Go(func() { feed(in, r.Body) })
		}
	}
	stream(w, r, reader)
}

func (s *Server) output(w http.ResponseWriter, r *http.Request) {
	e := s.find(w, r)
	if e == nil {
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
	w.Header().Set("Nexus-Exec-Pid", strconv.Itoa(reader.Exec.Pid))
	w.WriteHeader(200)
	flush := http.NewResponseController(w).Flush
	_ = flush()
	buf := buffers.Get().(*[wire.FrameHead + wire.MaxFrame]byte)
	defer buffers.Put(buf)
	for {
		n, err := reader.Next(r.Context(), buf[:])
		if err == io.EOF {
			break
		}
		if err == nil {
			_, err = w.Write(buf[:n])
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
		set("Nexus-Exit-Signal", SignalName(int(exit.Signal)))
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

func (s *Server) stdin(w http.ResponseWriter, r *http.Request) {
	e := s.find(w, r)
	if e == nil {
		return
	}
	in := e.TakeStdin()
	if in == nil {
		refuse(w, 409, "conflict", "the command has no standard input, or it has a writer already")
		return
	}
	n, err := feed(in, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	answer(w, 200, map[string]int64{"bytes": n})
}

// feed writes body to the command's standard input and closes it. The error is the body's: a command that closes its
// input is no error.
func feed(in *os.File, body io.Reader) (int64, error) {
	defer in.Close()
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

// SignalName is the name of a signal without SIG, or its number where it has none.
func SignalName(n int) string {
	if name := unix.SignalName(unix.Signal(n)); len(name) > 3 {
		return name[3:]
	}
	return strconv.Itoa(n)
}
