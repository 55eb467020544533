package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

func withTty(s *wire.Spec) { s.Tty = &wire.Size{Cols: 80, Rows: 24} }

// screen reads a terminal's output in the background.
type screen struct {
	*testing.T
	res  *http.Response
	text chan []byte
	seen []byte
	gap  uint64
}

func (g *guest) look(res *http.Response, err error) *screen {
	g.Helper()
	if err != nil || res.StatusCode != 200 {
		g.Fatal(res, err)
	}
	s := &screen{T: g.T, res: res, text: make(chan []byte, 1024)}
	go func() {
		defer close(s.text)
		head := make([]byte, wire.FrameHead)
		for {
			if _, err := io.ReadFull(res.Body, head); err != nil {
				return
			}
			data := make([]byte, binary.BigEndian.Uint32(head[1:]))
			if _, err := io.ReadFull(res.Body, data); err != nil {
				return
			}
			if head[0] == wire.Gap {
				s.gap += binary.BigEndian.Uint64(data[1:])
			} else {
				s.text <- data
			}
		}
	}()
	return s
}

func (s *screen) until(want string) {
	s.Helper()
	for deadline := time.After(30 * time.Second); !bytes.Contains(s.seen, []byte(want)); {
		select {
		case p, ok := <-s.text:
			if !ok {
				s.Fatalf("it ended without %q: %q", want, s.seen)
			}
			s.seen = append(s.seen, p...)
		case <-deadline:
			s.Fatalf("no %q in %q", want, s.seen)
		}
	}
}

type keys struct {
	*io.PipeWriter
	done chan int
}

// keyboard is one writer to a terminal.
func (g *guest) keyboard(id string) keys {
	r, w := io.Pipe()
	k := keys{w, make(chan int, 1)}
	go func() {
		res, err := g.begin(context.Background(), "POST", "/v1/exec/"+id+"/stdin", r)
		if err != nil {
			k.done <- -1
			return
		}
		_, _ = io.Copy(io.Discard, res.Body)
		k.done <- res.StatusCode
	}()
	return k
}

func (g *guest) resize(id, size string) int {
	g.Helper()
	return g.ask("POST", "/v1/exec/"+id+"/resize", strings.NewReader(size)).status
}

func (g *guest) items() map[string]execs.Item {
	g.Helper()
	var list struct{ Execs []execs.Item }
	if err := json.Unmarshal(g.ask("GET", "/v1/execs", nil).body, &list); err != nil {
		g.Fatal(err)
	}
	m := map[string]execs.Item{}
	for _, i := range list.Execs {
		m[i.ID] = i
	}
	return m
}

func TestTerminal(t *testing.T) {
	g := newGuest(t)
	id, body := spec(withTty, "sh", "-c", `trap 'echo size $(stty size)' WINCH; tty; stty size; echo $TERM >&2; while [ "$l" != end ]; do read -r l && echo "<$l>"; done; exit 3`)
	s := g.look(g.begin(context.Background(), "POST", "/v1/terminal", body))
	s.until("24 80\r\nxterm-256color\r\n")
	if !bytes.HasPrefix(s.seen, []byte("/dev/pts/")) {
		t.Errorf("%q", s.seen)
	}
	one, two := g.keyboard(id), g.keyboard(id)
	_, _ = io.WriteString(one, "one\n")
	s.until("<one>\r\n")
	_, _ = io.WriteString(two, "two\n")
	s.until("<two>\r\n")
	one.Close()
	if got := <-one.done; got != 200 {
		t.Errorf("the end of a writer: %d", got)
	}
	_, _ = io.WriteString(two, "more\n")
	s.until("<more>\r\n")
	for size, want := range map[string]int{`{"cols":0,"rows":0}`: 400, `{"cols":65536,"rows":1}`: 400, `{"cols":-1,"rows":5}`: 400, `{}`: 400, `x`: 400} {
		if got := g.resize(id, size); got != want {
			t.Errorf("%s: %d", size, got)
		}
	}
	for _, size := range []string{`{"cols":65535,"rows":65535}`, `{"cols":132,"rows":43}`} {
		if got := g.resize(id, size); got != 204 {
			t.Errorf("%s: %d", size, got)
		}
	}
	_, _ = io.WriteString(two, "\n")
	s.until("size 43 132\r\n")
	s.seen = nil
	if got := g.resize(id, `{"cols":132,"rows":43}`); got != 204 { // the same: whoever came wants it drawn anew
		t.Errorf("%d", got)
	}
	_, _ = io.WriteString(two, "\n")
	s.until("size 43 132\r\n")
	if i := g.items()[id]; !i.Tty || !i.Running || !strings.HasPrefix(i.Command, "sh -c trap") || i.StartedMs == 0 {
		t.Errorf("%+v", i)
	}
	_, _ = io.WriteString(two, "end\n")
	for range s.text {
	}
	if code := s.res.Trailer.Get("Nexus-Exit-Code"); code != "3" {
		t.Errorf("%q", code)
	}
	two.Close()
	<-two.done
	if got := g.resize(id, `{"cols":80,"rows":24}`); got != 409 {
		t.Errorf("the terminal of a command that has ended: %d", got)
	}
	if i := g.items()[id]; i.Running || i.Code == nil || *i.Code != 3 {
		t.Errorf("%+v", i)
	}
}

func TestTerminalIsARequestOfItsOwn(t *testing.T) {
	g := newGuest(t)
	_, with := spec(withTty, "true")
	_, without := spec(nil, "true")
	for path, body := range map[string]io.Reader{"/v1/exec": with, "/v1/terminal": without} {
		if r := g.ask("POST", path, body); r.status != 400 {
			t.Errorf("%s: %d", path, r.status)
		}
	}
	id, body := spec(nil, "sleep", "100")
	if _, err := g.begin(context.Background(), "POST", "/v1/exec", body); err != nil {
		t.Fatal(err)
	}
	if got := g.resize(id, `{"cols":80,"rows":24}`); got != 409 {
		t.Errorf("%d", got)
	}
}

// A session is made once, found by its name, and its name is free again after its end.
func TestSession(t *testing.T) {
	g := newGuest(t)
	g.server.Execs.Home = t.TempDir()
	open := func() (string, *screen) {
		_, body := spec(func(s *wire.Spec) { withTty(s); s.Session = "main"; s.Tail = 1000 })
		res, err := g.begin(context.Background(), "POST", "/v1/terminal", body)
		s := g.look(res, err)
		return res.Header.Get("Nexus-Exec-Id"), s
	}
	id, first := open()
	k := g.keyboard(id)
	_, _ = io.WriteString(k, "echo $0 a''b; seq 1000 $((1998+1))\n")
	first.until("ab\r\n1000\r\n")
	if !bytes.Contains(first.seen, []byte("-")) {
		t.Errorf("no login shell: %q", first.seen)
	}
	first.until("1999\r\n")
	again, second := open()
	second.until("1999\r\n")
	if again != id || bytes.HasPrefix(second.seen, []byte("999")) || len(second.seen) > 1200 || second.seen[0] != '1' {
		t.Errorf("%s %s %.60q", id, again, second.seen)
	}
	from := strings.Fields(second.res.Header.Get("Nexus-Exec-From"))
	if n, err := strconv.Atoi(from[0]); err != nil || n < 5000 {
		t.Errorf("it begins at %v", from)
	}
	_, _ = io.WriteString(k, "exit 4\n")
	for range first.text {
	}
	third, _ := open()
	if third == id {
		t.Error("an ended session was found")
	}
}

// Nobody is held by a viewer that takes nothing; it is told what it missed.
func TestTerminalWithAStalledViewer(t *testing.T) {
	g := newGuest(t)
	g.server.Execs.Hold = 300 * time.Millisecond
	mark := filepath.Join(t.TempDir(), "mark")
	id, body := spec(func(s *wire.Spec) { withTty(s) }, "sh", "-c", "stty -opost; echo start; while [ ! -e "+mark+" ]; do sleep 0.01; done; head -c 12000000 /dev/zero; echo end; read x")
	live := g.look(g.begin(context.Background(), "POST", "/v1/terminal", body))
	live.until("start")
	stalled, err := g.begin(context.Background(), "GET", "/v1/exec/"+id+"/output?tail=1000", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	total := 0
	for p := range live.text {
		total += len(p)
		if bytes.Contains(p, []byte("end\n")) {
			break
		}
	}
	if live.gap != 0 || total < 12000000 {
		t.Errorf("the live one: %d bytes, gap %d", total, live.gap)
	}
	_, _ = io.WriteString(g.keyboard(id), "\n")
	r := g.finish(stalled)
	if r.gaps[0] == 0 || uint64(len(r.out[0]))+r.gaps[0] < 12000000 || r.code != "0" {
		t.Errorf("the stalled one: %d bytes, gap %d, %q", len(r.out[0]), r.gaps[0], r.code)
	}
}

// A writer whose bytes nobody reads is ended with its request, and at the command's end at the latest.
func TestTerminalThatReadsNothing(t *testing.T) {
	g := newGuest(t)
	id, body := spec(withTty, "sh", "-c", "stty raw -echo; echo set; sleep 100")
	g.look(g.begin(context.Background(), "POST", "/v1/terminal", body)).until("set")
	var writers []*http.Response
	for range wire.LongStreams - 1 {
		res, err := g.begin(context.Background(), "POST", "/v1/exec/"+id+"/stdin", zeros{})
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		writers = append(writers, res)
	}
	time.Sleep(300 * time.Millisecond) // they wait
	for _, res := range writers {
		res.Body.Close()
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if r := g.run(nil, "true"); r.status == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the writers are still there: %d %s", r.status, r.body)
		}
	}
	last := g.keyboard(id)
	safe.Go(func() { _, _ = io.Copy(last, zeros{}) })
	time.Sleep(100 * time.Millisecond)
	if g.signal(id, "KILL") != 204 {
		t.Error("no signal")
	}
	if got := <-last.done; got != 200 {
		t.Errorf("a writer at the command's end: %d", got)
	}
	last.Close()
}
