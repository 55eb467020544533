package control

import (
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
