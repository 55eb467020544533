package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/wire"
)

func TestExecTellsTheTruth(t *testing.T) {
	g := newGuest(t)
	r := g.run(nil, "sh", "-c", `printf 'a\0\377'; printf b >&2; exit 7`)
	if r.status != 200 || string(r.out[0]) != "a\x00\xff" || string(r.out[1]) != "b" || r.code != "7" || r.sig != "" {
		t.Errorf("%+v", r)
	}
	if r.trailer.Get("Nexus-Timed-Out") != "0" || r.trailer.Get("Nexus-Duration-Us") == "" {
		t.Errorf("%v", r.trailer)
	}
	if r := g.run(nil, "sh", "-c", "kill -SEGV $$"); r.sig != "SEGV" || r.code != "" {
		t.Errorf("%+v", r)
	}
	r = g.run(func(s *wire.Spec) { s.Cwd, s.Env = "/usr", map[string]string{"X": "1 2"} }, "sh", "-c", "pwd; echo $X; cat")
	if string(r.out[0]) != "/usr\n1 2\n" {
		t.Errorf("%q", r.out[0])
	}
	start := time.Now()
	r = g.run(func(s *wire.Spec) { s.TimeoutMs = 50 }, "sh", "-c", "sleep 100 & sleep 100")
	if r.sig != "KILL" || r.trailer.Get("Nexus-Timed-Out") != "1" || time.Since(start) > 30*time.Second {
		t.Errorf("%+v", r)
	}
}

func TestCommandsThatCannotStart(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	big := strings.Repeat("x", 120_000)
	args := []string{"true"}
	for range 34 {
		args = append(args, big)
	}
	for _, c := range []struct {
		code string
		set  func(*wire.Spec)
		argv []string
	}{
		{"no_program", nil, []string{"no such program"}},
		{"no_program", nil, []string{"/etc/passwd/x"}},
		{"no_program", nil, []string{write("orphan", "#!/no/interpreter\n", 0o755)}},
		{"no_program", func(s *wire.Spec) { s.Env = map[string]string{"PATH": dir} }, []string{"ls"}},
		{"no_permission", nil, []string{write("plain", "x", 0o644)}},
		{"no_permission", nil, []string{"/"}},
		{"no_cwd", func(s *wire.Spec) { s.Cwd = "/no/such" }, []string{"true"}},
		{"no_cwd", func(s *wire.Spec) { s.Cwd = "/etc/passwd" }, []string{"true"}},
		{"no_cwd", func(s *wire.Spec) { s.Cwd = "relative" }, []string{"true"}},
		{"no_user", func(s *wire.Spec) { s.User = "no such user" }, []string{"true"}},
		{"too_big", nil, args},
		{"spawn", nil, []string{write("garbage", "\x01\x02", 0o755)}},
	} {
		r := g.run(c.set, c.argv...)
		var f wire.Fault
		if err := json.Unmarshal(r.body, &f); err != nil || r.status != 422 || f.Code != c.code || f.Detail == "" {
			t.Errorf("%.80q: %d %.200s, want %s", c.argv, r.status, r.body, c.code)
		}
	}
	if r := g.ask("POST", "/v1/exec", strings.NewReader("\xff\xff\xff\xff")); r.status != 400 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		g := newGuest(t)
		if r := g.run(func(s *wire.Spec) { s.User = "root" }, "true"); !strings.Contains(string(r.body), "no_permission") {
			t.Errorf("%d %s", r.status, r.body)
		}
		t.Skip("the rest needs root")
	}
	g := newGuest(t)
	as := func(s *wire.Spec) { s.User, s.Cwd = "12345", "/" }
	if r := g.run(as, "sh", "-c", "id -u; id -g; id -G; echo x >/dev/stdout"); string(r.out[0]) != "12345\n12345\n12345\nx\n" {
		t.Errorf("%q %q %s", r.out[0], r.out[1], r.body)
	}
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := g.run(func(s *wire.Spec) { s.User, s.Cwd = "12345", dir }, "true")
	if !strings.Contains(string(r.body), "no_cwd") {
		t.Errorf("%d %s", r.status, r.body)
	}
	// The thread that looked with the user's rights has its own again, or is gone.
	for range 20 {
		if r := g.run(func(s *wire.Spec) { s.Cwd = dir }, "id", "-u"); string(r.out[0]) != "0\n" {
			t.Fatalf("%q %s", r.out[0], r.body)
		}
	}
}

func TestStdin(t *testing.T) {
	g := newGuest(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB: far more than every window and pipe
	_, body := spec(func(s *wire.Spec) { s.Stdin = "open" }, "cat")
	body.Write(big)
	if r := g.ask("POST", "/v1/exec", body); !bytes.Equal(r.out[0], big) || r.code != "0" {
		t.Errorf("%d bytes, code %q", len(r.out[0]), r.code)
	}
	if r := g.run(nil, "cat"); len(r.out[0]) != 0 || r.code != "0" {
		t.Errorf("/dev/null gave %q", r.out[0])
	}
	id, body := spec(func(s *wire.Spec) { s.Stdin = "later" }, "wc", "-c")
	done := make(chan reply)
	go func() { done <- g.ask("POST", "/v1/exec", body) }()
	r := g.untilFound("POST", "/v1/exec/"+id+"/stdin", big)
	if string(r.body) != "{\"bytes\":1048576}\n" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := <-done; strings.TrimSpace(string(r.out[0])) != "1048576" {
		t.Errorf("%q", r.out[0])
	}
	if r := g.ask("POST", "/v1/exec/"+id+"/stdin", nil); r.status != 409 {
		t.Errorf("a second writer: %d", r.status)
	}
	id, body = spec(func(s *wire.Spec) { s.Stdin = "later" }, "sh", "-c", "exec <&-; sleep 100")
	go func() { _, _ = g.begin(context.Background(), "POST", "/v1/exec", body) }()
	if r := g.untilFound("POST", "/v1/exec/"+id+"/stdin", big); r.status != 200 {
		t.Errorf("a command that closed its input: %d %s", r.status, r.body)
	}
}

func (g *guest) untilFound(method, path string, body []byte) reply {
	g.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if r := g.ask(method, path, bytes.NewReader(body)); r.status != 404 {
			return r
		}
	}
	g.Fatal("still not found: ", path)
	return reply{}
}

// A grandchild holds the pipes: the answer ends all the same, with every byte of the command, and the grandchild may go on
// writing.
func TestGrandchild(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	path, mark := filepath.Join(dir, "alive"), filepath.Join(dir, "mark")
	id, body := spec(nil, "sh", "-c", "(trap 'echo pipe >"+path+"' PIPE; while [ ! -e "+mark+" ]; do sleep 0.01; done; "+
		"echo late; sleep 0.1; echo later && echo ok >"+path+") & echo now")
	r := g.ask("POST", "/v1/exec", body)
	if string(r.out[0]) != "now\n" || r.code != "0" {
		t.Errorf("%q", r.out[0])
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if g.signal(id, "TERM") != 404 {
		t.Error("a command that has ended took a signal")
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			if string(b) != "ok\n" {
				t.Errorf("%q", b)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the grandchild did not go on")
		}
	}
}

func TestSignal(t *testing.T) {
	g := newGuest(t)
	id, body := spec(nil, "sh", "-c", "trap 'echo got; exit 5' TERM; echo ready; sleep 100 & wait")
	res, err := g.begin(context.Background(), "POST", "/v1/exec", body)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(res.Body, make([]byte, wire.FrameHead+6))
	for _, name := range []string{"", "NOPE", "SIGTERM", "9"} {
		if got := g.signal(id, name); got != 400 {
			t.Errorf("%q: %d", name, got)
		}
	}
	if got := g.signal(id, "TERM"); got != 204 {
		t.Errorf("%d", got)
	}
	if r := g.finish(res); r.code != "5" {
		t.Errorf("%+v", r)
	}
}
