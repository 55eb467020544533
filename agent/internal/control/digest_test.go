package control

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/workfort/nexus/agent/internal/wire"
)

// The same request again is the same command, however late; the same ID for another one is refused.
func TestDigest(t *testing.T) {
	g := newGuest(t)
	path := filepath.Join(t.TempDir(), "runs")
	run := func(digest string) reply {
		_, body := spec(func(s *wire.Spec) { s.ID, s.Digest = "keyed", digest }, "sh", "-c", "echo x >>"+path+"; cat "+path+"; exit 9")
		return g.ask("POST", "/v1/exec", body)
	}
	for range 2 {
		if r := run("aa"); string(r.out[0]) != "x\n" || r.code != "9" {
			t.Errorf("%q %s", r.out[0], r.code)
		}
	}
	if r := run("bb"); r.status != 409 || !strings.Contains(string(r.body), `"exists"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	for range 70 {
		g.run(nil, "true")
	}
	if r := run("aa"); r.gaps[0] != 2 || len(r.out[0]) != 0 || r.code != "9" {
		t.Errorf("after many others: %+v", r)
	}
}

// What another agent may have run is run by none but that.
func TestAnotherAgentRunsNothing(t *testing.T) {
	g := newGuest(t)
	path := filepath.Join(t.TempDir(), "runs")
	for _, c := range []struct {
		first  string
		status int
		runs   bool
	}{{"11", 412, false}, {"00", 200, true}} {
		_, body := spec(nil, "touch", path)
		req, err := http.NewRequest("POST", "http://nexus/v1/exec", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Nexus-Agent-Id", c.first)
		res, err := g.conn.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		r := g.finish(res)
		if _, err := os.Stat(path); r.status != c.status || (err == nil) != c.runs {
			t.Errorf("%s: %d %s, %v", c.first, r.status, r.body, err)
		}
	}
}
