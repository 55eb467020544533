package takeover

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/execs"
	"github.com/workfort/nexus/agent/internal/facts"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/wire"
)

// What cannot be run leaves everything as it was: no byte is missing, and nothing is left open for children.
func TestReplaceThatFails(t *testing.T) {
	table := proc.NewTable(false)
	registry := execs.NewRegistry(table)
	resumed := 0
	free := facts.Available
	agent := &Agent{Program: "x", Execs: registry, Table: table, Available: func() uint64 { return free() },
		Served: func() (map[string]string, func()) { return map[string]string{"a": "b"}, func() { resumed++ } }}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	run := func(id, script string) *execs.Reader {
		r, _, fail := registry.Run(wire.Spec{ID: id, Argv: []string{"/bin/sh", "-c", script}, Stdin: "none", OnDisconnect: "keep"})
		if fail != nil {
			t.Fatal(fail)
		}
		return r
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	read := func(r *execs.Reader) (n int) {
		buf := make([]byte, 80<<10)
		for {
			if r.Wait(ctx) != nil {
				return n
			}
			m := r.Fill(buf)
			n += m - strings.Count(string(buf[:m]), "\x01\x00\x00")*wire.FrameHead
		}
	}
	before := descriptors(t, run("before", "sleep 1").Exec.Pid)
	torrent := run("torrent", "head -c 30000000 /dev/zero | tr '\\0' x")
	slow := run("slow", "for i in 1 2 3 4 5 6 7 8 9 10; do echo x; sleep 0.05; done")
	got := make(chan int, 2)
	for _, r := range []*execs.Reader{torrent, slow} {
		go func() { got <- read(r) }()
	}
	for range 10 {
		if err := agent.Replace(ctx, program); err == nil || !strings.Contains(err.Error(), "cannot be run") {
			t.Errorf("%v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if sum := <-got + <-got; sum != 30000020 {
		t.Errorf("%d bytes came", sum)
	}
	if resumed != 10 {
		t.Errorf("the ports were resumed %d times", resumed)
	}
	if after := descriptors(t, run("after", "sleep 1").Exec.Pid); after != before {
		t.Errorf("a child has %d descriptors instead of %d", after, before)
	}
	free = func() uint64 { return 1 }
	var fail *execs.Failure
	if err := agent.Replace(ctx, program); !errors.As(err, &fail) || fail.Status != 409 {
		t.Errorf("without memory: %v", err)
	}
	free = facts.Available
	gone, leave := context.WithCancel(ctx)
	leave()
	if err := agent.Replace(gone, program); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Errorf("without anybody who waits: %v", err)
	}
	registry.Leave() // Close waits for a Replace that is under way
	if err := agent.Replace(ctx, program); err == nil || !strings.Contains(err.Error(), "going down") {
		t.Errorf("about to go down: %v", err)
	}
	registry.Close()
	if err := agent.Replace(ctx, program); err == nil || !strings.Contains(err.Error(), "going down") {
		t.Errorf("on the way down: %v", err)
	}
}

// A program that could not read the state is refused before anything stands still.
func TestClaims(t *testing.T) {
	agent := &Agent{Program: "nexus-agent"}
	for text, want := range map[string]string{
		`{"program":"nexus-agent","version":"9","formats":[7,1,2],"later":true}`: "",
		`{"program":"nexus-agent","version":"9","formats":[2,3]}`:                "it cannot read the state of this agent: it knows the formats [2 3], not 1",
		`{"program":"nexus-agent","version":"9"}`:                                "it cannot read the state of this agent: it knows the formats [], not 1",
		`{"program":"agent-harness","version":"9","formats":[1]}`:                "it is no agent of this kind",
		"usage: something": "it is no agent of this kind",
		"":                 "it is no agent of this kind",
	} {
		got := ""
		if err := agent.judge([]byte(text)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	time.Sleep(100 * time.Millisecond)
	list, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
