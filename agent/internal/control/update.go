package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/wire"
)

// quietWithin is how long the small requests that are under way may take.
const quietWithin = 2 * time.Second

// Successor puts another program in the agent's place.
type Successor interface {
	Self() (wire.Agent, error)
	// Check says why the program cannot take over.
	Check(program *os.File) error
	// Replace returns only if it failed: then everything is as before. It does nothing for one that has gone away.
	Replace(ctx context.Context, program *os.File) error
}

func (s *Server) agent(w http.ResponseWriter, _ *http.Request) {
	self, err := s.Successor.Self()
	if err != nil {
		refuse(w, 500, "internal", "the agent cannot read its own program: "+err.Error())
		return
	}
	answer(w, 200, self)
}

// update has no answer if it succeeds: the connection ends.
func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	if !s.updating.CompareAndSwap(false, true) {
		refuse(w, 409, "conflict", "the agent is being updated already")
		return
	}
	defer s.updating.Store(false)
	program, err := receive(r)
	if err != nil {
		refuse(w, 400, "invalid", err.Error())
		return
	}
	defer program.Close()
	if err := s.Successor.Check(program); err != nil {
		refuse(w, 400, "invalid", err.Error())
		return
	}
	for limit := time.Now().Add(quietWithin); s.busy.Load() > 1; time.Sleep(5 * time.Millisecond) {
		if !time.Now().Before(limit) {
			refuse(w, 409, "conflict", "a request is under way that must not break off, as one that writes a file or the standard input of a command")
			return
		}
	}
	err = s.Successor.Replace(r.Context(), program)
	if fail := (*execs.Failure)(nil); errors.As(err, &fail) {
		refuse(w, fail.Status, fail.Code, fail.Detail)
	} else if err != nil {
		refuse(w, 500, "internal", err.Error())
	}
}

// receive takes a program of the length and the hash that the request's head says, into memory.
func receive(r *http.Request) (file *os.File, err error) {
	want := r.Header.Get("Nexus-Sha256")
	if r.ContentLength < 1 || r.ContentLength > wire.MaxAgent {
		return nil, fmt.Errorf("the program must have 1 to %d bytes", wire.MaxAgent)
	}
	fd, err := unix.MemfdCreate("nexus-agent", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the program finds no place: %w", err)
	}
	file = os.NewFile(uintptr(fd), "nexus-agent")
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, hash), io.LimitReader(r.Body, r.ContentLength))
	switch got := hex.EncodeToString(hash.Sum(nil)); {
	case err != nil:
		err = fmt.Errorf("the program did not come whole: %w", err)
	case n != r.ContentLength:
		err = fmt.Errorf("the program has %d bytes instead of %d", n, r.ContentLength)
	case got != want:
		err = fmt.Errorf("the program has the SHA-256 %s instead of %.64q", got, want)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
