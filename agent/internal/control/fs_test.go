package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/fs"
)

// framed is a body in frames of these chunks, with its end.
func framed(chunks ...string) io.Reader {
	var b []byte
	for _, chunk := range append(chunks, "") {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(chunk))), chunk...)
	}
	return strings.NewReader(string(b))
}

func TestFilesThroughTheHandler(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	path := url.QueryEscape(filepath.Join(dir, "a file & more"))
	if r := g.ask("POST", "/v1/fs/write?path="+path+"&mode=600", framed("one", " two")); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	r := g.ask("GET", "/v1/fs/read?path="+path+"&offset=4", nil)
	if r.status != 200 || string(r.body) != "two" || r.trailer.Get("Nexus-End") != "ok" {
		t.Fatalf("%d %s %v", r.status, r.body, r.trailer)
	}
	var e fs.Entry
	if r = g.ask("GET", "/v1/fs/stat?path="+path, nil); json.Unmarshal(r.body, &e) != nil || e.Mode != "0600" || e.SizeBytes != 7 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r = g.ask("GET", "/v1/fs/list?path="+url.QueryEscape(dir), nil); strings.Count(string(r.body), "\n") != 1 || r.trailer.Get("Nexus-End") != "ok" {
		t.Fatalf("%d %s", r.status, r.body)
	}
}

func TestBadRequestsForFilesAreRefused(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	path := url.QueryEscape(filepath.Join(dir, "file"))
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/fs/stat", "", 400},
		{"GET", "/v1/fs/stat?path=relative", "", 400},
		{"GET", "/v1/fs/stat?path=/a%00b", "", 400},
		{"GET", "/v1/fs/stat?path=/" + strings.Repeat("x", 4095), "", 400},
		{"GET", "/v1/fs/stat?path=" + path, "", 422},
		{"GET", "/v1/fs/list?path=", "", 400},
		{"GET", "/v1/fs/read?path=" + path + "&offset=-1", "", 400},
		{"GET", "/v1/fs/read?path=" + path + "&length=x", "", 400},
		{"GET", "/v1/fs/watch?path=x", "", 400},
		{"GET", "/v1/fs/watch?path=" + path, "", 422},
		{"GET", "/v1/fs/tree?path=..", "", 400},
		{"GET", "/v1/fs/tree?path=" + path, "", 422},
		{"POST", "/v1/fs/tree?path=x", "", 400},
		{"POST", "/v1/fs/write?path=" + path + "&mode=8", "", 400},
		{"POST", "/v1/fs/write?path=" + path + "&mode=17777", "", 400},
		{"POST", "/v1/fs/write?path=" + path + "&uid=-1", "", 400},
		{"POST", "/v1/fs/write?path=" + path + "&append=1&offset=1", "", 400},
		{"POST", "/v1/fs/write?path=" + path + "&modified_at_ms=soon", "", 400},
		{"POST", "/v1/fs/mkdir", "{", 400},
		{"POST", "/v1/fs/mkdir", `{"path":"x"}`, 400},
		{"POST", "/v1/fs/mkdir", `{"path":"/x","mode":"9"}`, 400},
		{"POST", "/v1/fs/mkdir", `{"path":"/x","uid":-2}`, 400},
		{"POST", "/v1/fs/remove", `{"path":7}`, 400},
		{"POST", "/v1/fs/remove", `{"path":"/` + strings.Repeat("x", 70_000) + `"}`, 400},
		{"POST", "/v1/fs/rename", `{"path":"/x","new_path":"y"}`, 400},
		{"POST", "/v1/fs/rename", `{"path":"/no/such/a","new_path":""}`, 422},
		{"POST", "/v1/fs/chmod", `{"path":"/no/such","mode":"644"}`, 422},
		{"GET", "/v1/fs/chmod", "", 404},
		{"GET", "/v1/fs/other", "", 404},
	} {
		if r := g.ask(c.method, c.path, strings.NewReader(c.body)); r.status != c.status {
			t.Errorf("%s %.60s: %d %s", c.method, c.path, r.status, r.body)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Fatal(names)
	}
}

func TestABodyWithoutItsLastFrameWritesNothing(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", "\x00\x00\x00\x03new", "\x00\x00\x00\x09new", "\xff\xff\xff\xff"} {
		for _, what := range []string{"write", "tree"} {
			path := map[string]string{"write": file, "tree": filepath.Join(dir, "tree")}[what]
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			res, err := g.begin(ctx, "POST", "/v1/fs/"+what+"?path="+url.QueryEscape(path), strings.NewReader(body))
			if err == nil {
				_, _ = io.ReadAll(res.Body)
				if res.StatusCode == http.StatusOK {
					t.Fatalf("%q is taken", body)
				}
			}
			cancel()
		}
	}
	if text, _ := os.ReadFile(file); string(text) != "old" {
		t.Fatalf("%q", text)
	}
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		names, _ := os.ReadDir(dir)
		if len(names) == 2 { // the file, and the directory that was to be filled
			return
		}
		if time.Now().After(limit) {
			t.Fatal(names)
		}
	}
}

// A watch that nobody reads ends with its stream.
func TestWatchesEndWithTheirStreams(t *testing.T) {
	g := newGuest(t)
	dir := url.QueryEscape(t.TempDir())
	for range 300 {
		ctx, cancel := context.WithCancel(context.Background())
		for {
			res, err := g.begin(ctx, "GET", "/v1/fs/watch?path="+dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode == 200 {
				break
			}
			_ = res.Body.Close() // 429: those before are on their way out
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
	}
}
