package control

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/wire"
)

func TestClock(t *testing.T) {
	g := newGuest(t)
	ask := func(method, body string) (int, time.Duration) {
		t.Helper()
		r := g.ask(method, "/v1/clock", strings.NewReader(body))
		var c wire.Clock
		if r.status == 200 && json.Unmarshal(r.body, &c) != nil {
			t.Fatalf("%s", r.body)
		}
		return r.status, time.Until(time.UnixMicro(c.ClockUs)).Round(10 * time.Second)
	}
	if status, off := ask("GET", ""); status != 200 || off != 0 {
		t.Errorf("%d, off by %v", status, off)
	}
	if status, off := ask("POST", `{"by_us":-3600000000}`); status != 200 || off != -time.Hour {
		t.Errorf("%d, off by %v", status, off)
	}
	if status, off := ask("GET", ""); status != 200 || off != -time.Hour {
		t.Errorf("%d, off by %v", status, off)
	}
	g.system.panic = true
	if status, _ := ask("POST", `{"by_us":1}`); status != 500 {
		t.Errorf("a clock that cannot be set: %d", status)
	}
}

func TestClockGolden(t *testing.T) {
	var v struct {
		Good  []struct{ Clock json.RawMessage }
		Steps []struct {
			Name  string
			Step  json.RawMessage
			Taken bool
		}
	}
	text, err := os.ReadFile("../../../test/vectors/clock.json")
	if err != nil || json.Unmarshal(text, &v) != nil || len(v.Good) == 0 || len(v.Steps) == 0 {
		t.Fatal("no vectors")
	}
	for _, c := range v.Good {
		var clock wire.Clock
		if err := json.Unmarshal(c.Clock, &clock); err != nil {
			t.Error(err)
		}
	}
	g := newGuest(t)
	for _, c := range v.Steps {
		if r := g.ask("POST", "/v1/clock", strings.NewReader(string(c.Step))); (r.status == 200) != c.Taken {
			t.Errorf("%s: %d", c.Name, r.status)
		}
	}
}
