package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/workfort/nexus/agent/internal/fs"
	"github.com/workfort/nexus/agent/internal/wire"
)

// done is the trailer of each answer that is streamed: ok, or the code of what broke it off.
func done(w http.ResponseWriter, err error) {
	code := "ok"
	if err != nil {
		code, _ = fs.CodeOf(err)
	}
	w.Header().Set(http.TrailerPrefix+"Nexus-End", code)
}

func fsList(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	path := q.path()
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	begun := false
	out := json.NewEncoder(w)
	err := fs.List(path, func() {
		begun = true
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(200)
	}, func(e fs.Entry) error {
		if err := out.Encode(e); err != nil {
			panic(http.ErrAbortHandler)
		}
		return nil
	})
	if !begun {
		refuseFs(w, err)
		return
	}
	done(w, err)
}

func fsRead(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	path, offset, length := q.path(), max(0, q.number("offset", 63)), q.number("length", 63)
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	f, err := fs.Open(path, offset, length, q.Get("etag"))
	if err != nil {
		refuseFs(w, err)
		return
	}
	defer f.Close()
	head, _ := json.Marshal(f.Entry)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Nexus-Entry", url.PathEscape(string(head)))
	if f.Length >= 0 && f.Entry.SizeBytes > 0 { // what the kernel makes up says it is empty, and gives what it has
		w.Header().Set("Nexus-Length", strconv.FormatInt(f.Length, 10))
	}
	w.WriteHeader(200)
	_ = http.NewResponseController(w).Flush()
	_, err = f.WriteTo(w)
	if broken := new(fs.Broken); errors.As(err, &broken) {
		panic(http.ErrAbortHandler)
	}
	done(w, err)
}

func fsWrite(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	job := fs.Write{Path: q.path(), Mode: q.mode(), UID: int(q.number("uid", 31)), GID: int(q.number("gid", 31)),
		Append: q.Get("append") == "1", Offset: q.number("offset", 63), Modified: q.time()}
	if job.Append && job.Offset >= 0 {
		q.fail("append and offset exclude each other")
	}
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	n, e, err := job.From(&wire.Frames{R: r.Body})
	if broken := new(fs.Broken); errors.As(err, &broken) {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		refuseFs(w, err)
		return
	}
	answer(w, 200, map[string]any{"bytes": n, "entry": e})
}

func fsWatch(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	path := q.path()
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	watcher, err := fs.Watch(path, q.Get("recursive") == "1")
	if err != nil {
		refuseFs(w, err)
		return
	}
	defer watcher.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(200)
	out, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	sent := func(err error) error {
		if err != nil {
			return &fs.Broken{Err: err}
		}
		return nil
	}
	err = watcher.Run(r.Context(), func(e fs.Event) error { return sent(out.Encode(e)) }, func() error { return sent(flush()) })
	if broken := new(fs.Broken); errors.As(err, &broken) {
		panic(http.ErrAbortHandler)
	}
	done(w, err)
}

func fsExport(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	path := q.path()
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	tree, begun := &fs.Tree{Devices: q.Get("devices") == "1"}, false
	out := bufio.NewWriterSize(w, 64<<10)
	err := tree.Export(r.Context(), path, out, func() {
		begun = true
		w.Header().Set("Content-Type", "application/x-tar")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
	})
	if !begun {
		refuseFs(w, err)
		return
	}
	if flushed := out.Flush(); err == nil && flushed != nil {
		err = &fs.Broken{Err: flushed}
	}
	if broken := new(fs.Broken); errors.As(err, &broken) {
		panic(http.ErrAbortHandler)
	}
	done(w, err)
}

func fsImport(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	path := q.path()
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	taken, err := fs.Import(path, &wire.Frames{R: r.Body})
	if broken := new(fs.Broken); errors.As(err, &broken) {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		refuseFs(w, err)
		return
	}
	answer(w, 200, taken)
}
