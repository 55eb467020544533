package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Event is one change below a watched path.
type Event struct {
	// watching (once, when all is in place), created, changed, removed, moved, overflow.
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
	// NewPath is where a moved file is now.
	NewPath   string `json:"new_path,omitempty"`
	Directory bool   `json:"directory,omitempty"`
}

// maxWatches bounds the directories of one watch.
const maxWatches = 1 << 16

// pairing is how long the second half of a move may take to come.
const pairing = 20 * time.Millisecond

const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE | unix.IN_MOVED_FROM |
	unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_EXCL_UNLINK

var (
	errWatches   = &Refusal{"WATCHES", "the guest's limit of watches is reached"}
	errInstances = &Refusal{"WATCHES", "the guest's limit of watchers is reached"}
)

// Watcher tells what changes at a path. One goroutine uses it.
type Watcher struct {
	file      *os.File
	fd        int
	root      string
	recursive bool
	paths     map[int32]string // of directories, by watch
	emit      func(Event) error
	// from is the first half of a move whose second half has not come.
	from *raw
	last Event
}

type raw struct {
	mask, cookie uint32
	path         string
}

// Watch prepares a watch of the file or directory at path; with recursive of all directories below, links not followed.
func Watch(path string, recursive bool) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == unix.EMFILE {
		return nil, errInstances
	}
	if err != nil {
		return nil, err
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, root: path, recursive: recursive, paths: map[int32]string{}}
	if len(path) > 1 {
		w.root = strings.TrimRight(path, "/")
	}
	w.emit = func(Event) error { return nil } // what is there already is no news
	if err := w.add(w.root, 0); err != nil {
		w.Close()
		return nil, err
	}
	if err := w.below(w.root); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close ends the watch.
func (w *Watcher) Close() error { return w.file.Close() }

func (w *Watcher) add(path string, flags uint32) error {
	if len(w.paths) >= maxWatches {
		return errWatches
	}
	wd, err := unix.InotifyAddWatch(w.fd, path, watched|flags)
	if err == unix.ENOSPC {
		return errWatches
	}
	if err == nil {
		w.paths[int32(wd)] = path
	}
	return err
}

// below adds watches for the directories below one, and tells of what it finds: it came before its watch.
func (w *Watcher) below(dir string) error {
	if !w.recursive {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // no directory, or gone again
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := w.tell(Event{Type: "created", Path: path, Directory: e.IsDir()}); err != nil {
			return err
		}
		if !e.IsDir() {
			continue
		}
		if err := w.deeper(path); err != nil {
			return err
		}
	}
	return nil
}

// deeper watches a directory that is new to the watch, and all below. One that is gone again is no error.
func (w *Watcher) deeper(path string) error {
	err := w.add(path, unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW)
	if err == nil {
		return w.below(path)
	}
	if errors.Is(err, errWatches) {
		return err
	}
	return nil
}

// tell emits an event, unless it is the same as the one before.
func (w *Watcher) tell(e Event) error {
	e.Path, e.NewPath = valid(e.Path), valid(e.NewPath)
	if e == w.last && e.Type == "changed" {
		return nil
	}
	w.last = e
	return w.emit(e)
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Run emits events until ctx is done, the watched path itself is gone, or emit fails. flush is called when no event is waiting.
func (w *Watcher) Run(ctx context.Context, emit func(Event) error, flush func() error) error {
	defer context.AfterFunc(ctx, func() { w.file.Close() })()
	w.emit = emit
	if err := w.tell(Event{Type: "watching", Path: w.root}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		if w.from == nil {
			if err := flush(); err != nil {
				return err
			}
			_ = w.file.SetReadDeadline(time.Time{})
		} else {
			_ = w.file.SetReadDeadline(time.Now().Add(pairing))
		}
		n, err := w.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err := w.unpaired(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return &Broken{ctx.Err()}
			}
			return err
		}
		over, err := w.take(buf[:n])
		if over || err != nil {
			return err
		}
	}
}

// take handles what one read gave: struct inotify_event of inotify(7). It is over when the watched path is gone.
func (w *Watcher) take(buf []byte) (over bool, err error) {
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf))
		e := &raw{mask: binary.NativeEndian.Uint32(buf[4:]), cookie: binary.NativeEndian.Uint32(buf[8:])}
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		name := string(bytes.TrimRight(buf[unix.SizeofInotifyEvent:end], "\x00"))
		buf = buf[end:]
		dir, known := w.paths[wd]
		if e.mask&unix.IN_IGNORED != 0 {
			delete(w.paths, wd)
			if known && dir == w.root {
				return true, nil
			}
			continue
		}
		if !known && e.mask&unix.IN_Q_OVERFLOW == 0 {
			continue
		}
		e.path = dir
		if name != "" {
			e.path = filepath.Join(dir, name)
		}
		if err := w.one(e, name == ""); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (w *Watcher) one(e *raw, itself bool) error {
	isDir := e.mask&unix.IN_ISDIR != 0
	if w.from != nil && (e.mask&unix.IN_MOVED_TO == 0 || e.cookie != w.from.cookie) {
		if err := w.unpaired(); err != nil {
			return err
		}
	}
	switch {
	case e.mask&unix.IN_Q_OVERFLOW != 0:
		return w.tell(Event{Type: "overflow"})
	case itself && e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
		if e.path != w.root {
			return nil // its directory tells
		}
		if e.mask&unix.IN_MOVE_SELF != 0 {
			w.forget(w.root)
		}
		return w.tell(Event{Type: "removed", Path: e.path, Directory: isDir})
	case e.mask&unix.IN_MOVED_FROM != 0:
		w.from = e
		return nil
	case e.mask&unix.IN_MOVED_TO != 0 && w.from != nil:
		from := w.from.path
		w.from = nil
		w.move(from, e.path)
		return w.tell(Event{Type: "moved", Path: from, NewPath: e.path, Directory: isDir})
	case e.mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		if err := w.tell(Event{Type: "created", Path: e.path, Directory: isDir}); err != nil || !isDir || !w.recursive {
			return err
		}
		return w.deeper(e.path)
	case e.mask&unix.IN_DELETE != 0:
		return w.tell(Event{Type: "removed", Path: e.path, Directory: isDir})
	case itself && isDir && e.path != w.root:
		return nil // its directory tells
	default:
		return w.tell(Event{Type: "changed", Path: e.path, Directory: isDir})
	}
}

// unpaired tells of a file that moved out of what is watched.
func (w *Watcher) unpaired() error {
	from := w.from
	w.from = nil
	w.forget(from.path)
	return w.tell(Event{Type: "removed", Path: from.path, Directory: from.mask&unix.IN_ISDIR != 0})
}

// forget ends the watches at a path and below.
func (w *Watcher) forget(path string) {
	for wd, dir := range w.paths {
		if dir == path || strings.HasPrefix(dir, path+"/") {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // IN_IGNORED follows
		}
	}
}

// move gives the watches at a path and below their new paths.
func (w *Watcher) move(from, to string) {
	for wd, dir := range w.paths {
		if dir == from || strings.HasPrefix(dir, from+"/") {
			w.paths[wd] = to + dir[len(from):]
		}
	}
}
