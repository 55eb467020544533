package fs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// watching runs a watch in the background and gives its events.
func watching(t *testing.T, path string, recursive bool) (events chan Event, ended chan error) {
	t.Helper()
	w, err := Watch(path, recursive)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	events, ended = make(chan Event, 10_000), make(chan error, 1)
	go func() {
		ended <- w.Run(ctx, func(e Event) error { events <- e; return nil }, func() error { return nil })
	}()
	t.Cleanup(func() {
		cancel()
		w.Close()
	})
	next(t, events, Event{Type: "watching", Path: path})
	return events, ended
}

// next waits for an event, and passes over changes of what is watched.
func next(t *testing.T, events chan Event, want Event) {
	t.Helper()
	for {
		select {
		case e := <-events:
			if e == want {
				return
			}
			if e.Type != "changed" {
				t.Fatalf("%+v, not %+v", e, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no %+v", want)
		}
	}
}

func TestWatchTellsWhatChanges(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("old/deep"), 0o755))
	events, ended := watching(t, dir, true)
	put(t, at("file"), "1")
	next(t, events, Event{Type: "created", Path: at("file")})
	next(t, events, Event{Type: "changed", Path: at("file")})
	must(t, os.Rename(at("file"), at("old/deep/file")))
	next(t, events, Event{Type: "moved", Path: at("file"), NewPath: at("old/deep/file")})
	must(t, os.Rename(at("old"), at("new")))
	next(t, events, Event{Type: "moved", Path: at("old"), NewPath: at("new"), Directory: true})
	must(t, os.Remove(at("new/deep/file")))
	next(t, events, Event{Type: "removed", Path: at("new/deep/file")})
	outside := filepath.Join(t.TempDir(), "out")
	must(t, os.Rename(at("new"), outside))
	next(t, events, Event{Type: "removed", Path: at("new"), Directory: true})
	put(t, filepath.Join(outside, "deep/unseen"), "1")
	must(t, os.Rename(outside, at("back")))
	next(t, events, Event{Type: "created", Path: at("back"), Directory: true})
	next(t, events, Event{Type: "created", Path: at("back/deep"), Directory: true})
	next(t, events, Event{Type: "created", Path: at("back/deep/unseen")})
	put(t, at("back/deep/seen"), "1")
	next(t, events, Event{Type: "created", Path: at("back/deep/seen")})
	must(t, os.RemoveAll(dir))
	for e := range events {
		if e == (Event{Type: "removed", Path: dir, Directory: false}) || e == (Event{Type: "removed", Path: dir, Directory: true}) {
			break
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestWatchSeesATreeThatIsMadeAtOnce(t *testing.T) {
	dir := t.TempDir()
	events, _ := watching(t, dir, true)
	var want []string
	path := dir
	for range 40 {
		path = filepath.Join(path, "d")
		want = append(want, path)
	}
	must(t, os.MkdirAll(path, 0o755))
	seen := map[string]bool{}
	for limit := time.After(10 * time.Second); len(seen) < len(want); {
		select {
		case e := <-events:
			if e.Type == "created" {
				seen[e.Path] = true
			}
		case <-limit:
			t.Fatalf("%d of %d", len(seen), len(want))
		}
	}
}

func TestWatchOfOneFileOrOneDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	put(t, file, "1")
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	flat, _ := watching(t, dir, false)
	one, ended := watching(t, file, false)
	put(t, filepath.Join(dir, "sub/unseen"), "1")
	put(t, file, "22")
	next(t, flat, Event{Type: "changed", Path: file})
	next(t, one, Event{Type: "changed", Path: file})
	must(t, os.Remove(file))
	next(t, one, Event{Type: "removed", Path: file})
	next(t, flat, Event{Type: "removed", Path: file})
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	_, err := Watch(file, true)
	wants(t, err, "ENOENT")
}

func TestWatchEndsWithItsReader(t *testing.T) {
	w, err := Watch(t.TempDir(), true)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	var broken *Broken
	if err := w.Run(ctx, func(Event) error { return nil }, func() error { return nil }); !errors.As(err, &broken) {
		t.Fatal(err)
	}
}

func TestWatchTellsOfAnOverflow(t *testing.T) {
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil || len(limit) > 6 {
		t.Skipf("the queue is %s: %v", limit, err)
	}
	dir := t.TempDir()
	w, err := Watch(dir, false)
	must(t, err)
	defer w.Close()
	for range 20_000 {
		put(t, filepath.Join(dir, "a"), "")
		must(t, os.Remove(filepath.Join(dir, "a")))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var types []string
	_ = w.Run(ctx, func(e Event) error {
		types = append(types, e.Type)
		if e.Type == "overflow" {
			cancel()
		}
		return nil
	}, func() error { return nil })
	if !slices.Contains(types, "overflow") {
		t.Fatalf("%d events and no overflow", len(types))
	}
}
