package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/wire"
)

func TestReplay(t *testing.T) {
	g := newGuest(t)
	id, body := spec(nil, "sh", "-c", "echo hello; echo oh >&2")
	g.ask("POST", "/v1/exec", body)
	if r := g.ask("GET", "/v1/exec/"+id+"/output?stdout=2&stderr=3", nil); string(r.out[0]) != "llo\n" || len(r.out[1]) != 0 || r.code != "0" {
		t.Errorf("%+v", r)
	}
	for _, q := range []string{"stdout=7", "stdout=-1", "stderr=x", "stdout=99999999999999999999"} {
		if r := g.ask("GET", "/v1/exec/"+id+"/output?"+q, nil); r.status != 400 {
			t.Errorf("%s: %d", q, r.status)
		}
	}
	if r := g.ask("GET", "/v1/exec/other/output", nil); r.status != 404 {
		t.Errorf("%d", r.status)
	}
	// The same id again attaches: the command runs once.
	path := filepath.Join(t.TempDir(), "runs")
	for range 3 {
		_, body := spec(func(s *wire.Spec) { s.ID = "once" }, "sh", "-c", "echo x >>"+path+"; cat "+path)
		if r := g.ask("POST", "/v1/exec", body); string(r.out[0]) != "x\n" {
			t.Errorf("%q", r.out[0])
		}
	}
}

// Nobody reads: the command runs on, and the next reader is told what it missed.
func TestGap(t *testing.T) {
	g := newGuest(t)
	const total = 3 << 20
	ctx, cancel := context.WithCancel(context.Background())
	mark := filepath.Join(t.TempDir(), "mark")
	id, body := spec(nil, "sh", "-c", "echo start; while [ ! -e "+mark+" ]; do sleep 0.01; done; head -c 3145728 /dev/zero; echo end >&2")
	res, err := g.begin(ctx, "POST", "/v1/exec", body)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(res.Body, make([]byte, wire.FrameHead+6))
	cancel()
	res.Body.Close()
	time.Sleep(50 * time.Millisecond) // the reset is on its way
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e := g.server.Execs.Get(id)
	for deadline := time.Now().Add(30 * time.Second); e.Running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the command waits for a reader that is gone")
		}
	}
	r := g.ask("GET", "/v1/exec/"+id+"/output?stdout=6", nil)
	if r.gaps[0]+uint64(len(r.out[0])) != total || len(r.out[0]) != 768<<10 || string(r.out[1]) != "end\n" || r.code != "0" {
		t.Errorf("gap %d, %d bytes, %q", r.gaps[0], len(r.out[0]), r.out[1])
	}
}

// A reader is attached and slow: the command waits, and not a byte is lost, though it ended long before the last was read.
func TestBackPressure(t *testing.T) {
	g := newGuest(t)
	_, body := spec(nil, "sh", "-c", "head -c 2097152 /dev/zero; printf last")
	res, err := g.begin(context.Background(), "POST", "/v1/exec", body)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	r := g.finish(res)
	if len(r.out[0]) != 2097156 || r.gaps[0] != 0 || string(r.out[0][2097152:]) != "last" || r.code != "0" {
		t.Errorf("%d bytes, gap %d", len(r.out[0]), r.gaps[0])
	}
}

func TestOnDisconnect(t *testing.T) {
	g := newGuest(t)
	g.server.Execs.OrphanDelay = 50 * time.Millisecond
	leave := func(kind string) *execs.Exec {
		ctx, cancel := context.WithCancel(context.Background())
		id, body := spec(func(s *wire.Spec) { s.OnDisconnect = kind }, "sleep", "100")
		if _, err := g.begin(ctx, "POST", "/v1/exec", body); err != nil {
			t.Fatal(err)
		}
		cancel()
		return g.server.Execs.Get(id)
	}
	kept, killed := leave("keep"), leave("kill")
	for deadline := time.Now().Add(30 * time.Second); killed.Running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not killed")
		}
	}
	if !kept.Running() {
		t.Error("it was not kept")
	}
}

// Readers and writers that stall take nothing from a third: the windows of all of them together fit the connection's.
func TestStalledStreams(t *testing.T) {
	g := newGuest(t)
	for range 8 {
		_, body := spec(nil, "cat", "/dev/zero")
		if _, err := g.begin(context.Background(), "POST", "/v1/exec", body); err != nil {
			t.Fatal(err)
		}
		_, body = spec(func(s *wire.Spec) { s.Stdin = "open" }, "sleep", "1000")
		if _, err := g.begin(context.Background(), "POST", "/v1/exec", io.MultiReader(body, zeros{})); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		if r := g.run(nil, "true"); r.code != "0" {
			t.Fatalf("%+v", r)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestStreamsAreKeptForTheShortOnes(t *testing.T) {
	g := newGuest(t)
	_, body := spec(func(s *wire.Spec) { s.ID = "long" }, "sleep", "1000")
	if _, err := g.begin(context.Background(), "POST", "/v1/exec", body); err != nil {
		t.Fatal(err)
	}
	for range wire.LongStreams - 1 {
		res, err := g.begin(context.Background(), "GET", "/v1/exec/long/output", nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
	}
	if r := g.run(nil, "true"); r.status != 429 || !strings.Contains(string(r.body), "too_many") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := g.ask("GET", "/v1/ping", nil); r.status != 204 {
		t.Errorf("%d", r.status)
	}
	if g.signal("long", "KILL") != 204 {
		t.Error("no stream for a signal")
	}
}

func TestEndedExecsAreBounded(t *testing.T) {
	g := newGuest(t)
	first, body := spec(nil, "true")
	g.ask("POST", "/v1/exec", body)
	for range 70 {
		g.run(nil, "true")
	}
	var list struct{ Execs []execs.Item }
	if err := json.Unmarshal(g.ask("GET", "/v1/execs", nil).body, &list); err != nil || len(list.Execs) > 66 {
		t.Errorf("%d are kept, %v", len(list.Execs), err)
	}
	if r := g.ask("GET", "/v1/exec/"+first+"/output", nil); r.status != 404 {
		t.Errorf("the oldest is still there: %d", r.status)
	}
}

// A connection that is cut gives its readers up; the command is found again by its id on the next.
func TestReconnect(t *testing.T) {
	g := newGuest(t)
	id, body := spec(nil, "sh", "-c", "cat /dev/zero | head -c 50000000; echo end >&2")
	res, err := g.begin(context.Background(), "POST", "/v1/exec", body)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(res.Body, make([]byte, 1<<20))
	g.raw.Close()
	g.dial()
	r := g.ask("GET", "/v1/exec/"+id+"/output", nil)
	if r.gaps[0] == 0 || r.gaps[0]+uint64(len(r.out[0])) != 50000000 || string(r.out[1]) != "end\n" || r.code != "0" {
		t.Errorf("gap %d, %d bytes, %q", r.gaps[0], len(r.out[0]), r.out[1])
	}
}

// Whoever comes back to where it was within the hold has lost nothing, however often, though the command is faster than any ring.
func TestCutsLoseNothing(t *testing.T) {
	g := newGuest(t)
	id, body := spec(nil, "seq", "10000000", "12999999") // 9 bytes a line
	var got []byte
	res, err := g.begin(context.Background(), "POST", "/v1/exec", body)
	for cut := 1; ; cut++ {
		if err != nil {
			t.Fatal(err)
		}
		head, left := make([]byte, wire.FrameHead), 300<<10
		for {
			if _, err = io.ReadFull(res.Body, head); err != nil {
				break
			}
			data := make([]byte, binary.BigEndian.Uint32(head[1:]))
			if _, err = io.ReadFull(res.Body, data); err != nil {
				break
			}
			if head[0] != wire.Stdout {
				t.Fatalf("channel %d after %d bytes: %v", head[0], len(got), data)
			}
			got, left = append(got, data...), left-len(data)
			if left <= 0 && cut <= 20 {
				g.raw.Close() // what arrived is read on: this client's window is larger than the protocol's
			}
		}
		if cut > 20 {
			break
		}
		g.raw.Close()
		g.dial()
		res, err = g.begin(context.Background(), "GET", fmt.Sprintf("/v1/exec/%s/output?stdout=%d", id, len(got)), nil)
	}
	if len(got) != 27_000_000 {
		t.Fatalf("%d bytes", len(got))
	}
	for n := range 3_000_000 {
		if want := fmt.Sprintf("%d\n", 10_000_000+n); string(got[9*n:9*n+9]) != want {
			t.Fatalf("line %d: %q", n, got[9*n:9*n+9])
		}
	}
}

func TestPanicGoesNoFurther(t *testing.T) {
	g := newGuest(t)
	g.system.panic = true
	if _, err := g.begin(context.Background(), "POST", "/v1/settle", strings.NewReader("{}")); err == nil {
		t.Error("a handler that failed gave an answer")
	} else if se := (http2.StreamError{}); !errors.As(err, &se) {
		t.Errorf("more than the stream broke: %v", err)
	}
	if r := g.ask("GET", "/v1/ping", nil); r.status != 204 {
		t.Errorf("%d", r.status)
	}
}

func TestPowerAndSettle(t *testing.T) {
	g := newGuest(t)
	for _, body := range []string{`{"kind":"halt"}`, `{"kind":"poweroff","grace_ms":-1}`, `{}`, `x`, `{"kind":1}`,
		`{"kind":"poweroff","x":"` + strings.Repeat("y", wire.MaxJSON) + `"}`} {
		if r := g.ask("POST", "/v1/power", strings.NewReader(body)); r.status != 400 {
			t.Errorf("%.40s: %d", body, r.status)
		}
	}
	if r := g.ask("POST", "/v1/power", strings.NewReader(`{"kind":"reboot","grace_ms":1500}`)); r.status != 202 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if p := <-g.system.power; p != (wire.Power{Kind: "reboot", GraceMs: 1500}) {
		t.Errorf("%+v", p)
	}
	for body, want := range map[string]int{`{}`: 204, `{"clock_ms":1,"entropy":"AAAA","hostname":"a-b.c"}`: 204,
		`{"hostname":"a b"}`: 400, `{"hostname":"a\nb"}`: 400, `{"clock_ms":-5}`: 400, `{"entropy":"?"}`: 400} {
		if r := g.ask("POST", "/v1/settle", strings.NewReader(body)); r.status != want {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
	}
	for body, want := range map[string]int{`{"device":"vda","size_bytes":1}`: 200, `{"device":"vdb","size_bytes":1}`: 409,
		`{"device":"vdc","size_bytes":1}`: 500, `{"device":1}`: 400} {
		if r := g.ask("POST", "/v1/disks/grow", strings.NewReader(body)); r.status != want {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
	}
	g.server.Execs.Close()
	if r := g.run(nil, "true"); r.status != 409 {
		t.Errorf("a command was started while the machine goes down: %d", r.status)
	}
	for path, method := range map[string]string{"/": "GET", "/v2/ping": "GET", "/v1/ping": "POST", "/v1/exec/a/b": "GET"} {
		if r := g.ask(method, path, nil); r.status != 404 || !bytes.Contains(r.body, []byte("not_found")) {
			t.Errorf("%s %s: %d %s", method, path, r.status, r.body)
		}
	}
}
