package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func wants(t *testing.T, err error, code string) {
	t.Helper()
	if got, _ := CodeOf(err); err == nil || got != code {
		t.Fatalf("%v is not %s", err, code)
	}
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func write(path string) Write { return Write{Path: path, UID: -1, GID: -1, Offset: -1} }

// alone fails if there is more in the directory than those names: a temporary file was left.
func alone(t *testing.T, dir string, names ...string) {
	t.Helper()
	found, err := os.ReadDir(dir)
	must(t, err)
	if len(found) != len(names) {
		t.Fatalf("%v, not %v", found, names)
	}
}

func TestAWholeWriteKeepsModeAndFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	put(t, file, "old")
	must(t, unix.Chmod(file, 0o4711))
	must(t, os.Symlink("file", link))
	n, e, err := write(link).From(strings.NewReader("new text"))
	must(t, err)
	if n != 8 || e.Mode != "4711" || e.SizeBytes != 8 || text(t, file) != "new text" {
		t.Fatalf("%d %+v", n, e)
	}
	if target, err := os.Readlink(link); err != nil || target != "file" {
		t.Fatal("the link was replaced")
	}
	must(t, os.Symlink("fresh", filepath.Join(dir, "dangling")))
	w := write(filepath.Join(dir, "dangling"))
	mode := uint32(0o600)
	w.Mode = &mode
	_, e, err = w.From(strings.NewReader("x"))
	must(t, err)
	if e.Mode != "0600" || text(t, filepath.Join(dir, "fresh")) != "x" {
		t.Fatalf("%+v", e)
	}
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	_, _, err = write(filepath.Join(dir, "loop")).From(strings.NewReader("x"))
	wants(t, err, "ELOOP")
	alone(t, dir, "file", "link", "dangling", "fresh", "loop")
}

type failing struct{ text io.Reader }

var errLost = errors.New("lost")

func (f failing) Read(b []byte) (int, error) {
	n, err := f.text.Read(b)
	if err == io.EOF {
		err = errLost
	}
	return n, err
}

func TestABrokenWriteLeavesWhatWasThere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	put(t, file, "old")
	_, _, err := write(file).From(failing{strings.NewReader(strings.Repeat("x", 200_000))})
	var broken *Broken
	if !errors.As(err, &broken) || text(t, file) != "old" {
		t.Fatal(err)
	}
	for path, code := range map[string]string{dir: "EISDIR", dir + "/no/file": "ENOENT", "/dev/null": "NOT_REGULAR",
		file + "/x": "ENOTDIR", dir + "/..": "EISDIR", dir + "/" + strings.Repeat("n", 300): "ENAMETOOLONG"} {
		_, _, err := write(path).From(strings.NewReader("x"))
		wants(t, err, code)
	}
	alone(t, dir, "file")
}

func TestAppendAndOffsetWriteInPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	w := write(file)
	w.Append = true
	for range 2 {
		_, _, err := w.From(strings.NewReader("ab"))
		must(t, err)
	}
	w.Append, w.Offset = false, 1
	_, _, err := w.From(strings.NewReader("XY"))
	must(t, err)
	if text(t, file) != "aXYb" {
		t.Fatal(text(t, file))
	}
	w.Offset = 4
	data := append(make([]byte, 1<<20), 'z')
	data[0] = 'c'
	_, _, err = w.From(bytes.NewReader(data))
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(file, &st))
	if text(t, file) != "aXYb"+string(data) || st.Blocks*512 > 64<<10 {
		t.Fatal("another content, or no hole")
	}
	w.Path = "/dev/null"
	_, _, err = w.From(strings.NewReader("x"))
	wants(t, err, "NOT_REGULAR")
}

func TestZerosBecomeHoles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	data := make([]byte, 4<<20+100)
	data[1<<20+5], data[3<<20] = 1, 2
	_, e, err := write(file).From(iotestHalf{bytes.NewReader(data)})
	must(t, err)
	got, err := os.ReadFile(file)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(file, &st))
	if !bytes.Equal(got, data) || e.SizeBytes != int64(len(data)) || st.Blocks*512 > 256<<10 {
		t.Fatalf("%d bytes in %d blocks", e.SizeBytes, st.Blocks)
	}
}

// iotestHalf reads in odd portions.
type iotestHalf struct{ io.Reader }

func (h iotestHalf) Read(b []byte) (int, error) { return h.Reader.Read(b[:min(len(b), 3001)]) }

func TestReadingIsExactOrFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	put(t, file, "0123456789")
	read := func(offset, length int64, etag string) (string, error) {
		r, err := Open(file, offset, length, etag)
		if err != nil {
			return "", err
		}
		defer r.Close()
		var b strings.Builder
		_, err = r.WriteTo(&b)
		return b.String(), err
	}
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, -1, "0123456789"}, {3, 4, "3456"}, {8, 100, "89"}, {50, -1, ""}, {0, 0, ""}} {
		if got, err := read(c.offset, c.length, ""); err != nil || got != c.want {
			t.Fatalf("%+v: %q %v", c, got, err)
		}
	}
	r, err := Open(file, 0, -1, "")
	must(t, err)
	put(t, file, "short")
	_, err = r.WriteTo(io.Discard)
	wants(t, err, "SHRUNK")
	_, err = read(0, -1, r.Entry.Etag)
	wants(t, err, "CHANGED")
	for path, code := range map[string]string{dir: "EISDIR", "/dev/null": "NOT_REGULAR", dir + "/no": "ENOENT"} {
		_, err := Open(path, 0, -1, "")
		wants(t, err, code)
	}
	proc, err := Open("/proc/self/status", 0, -1, "")
	must(t, err)
	var b strings.Builder
	if n, err := proc.WriteTo(&b); err != nil || n < 100 || !strings.HasPrefix(b.String(), "Name:") {
		t.Fatal(n, err)
	}
}

func TestListAndStat(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a\xffb"), "x")
	must(t, os.Symlink("/no/where", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for i := range 600 {
		put(t, filepath.Join(dir, fmt.Sprint("n", i)), "")
	}
	found := map[string]Entry{}
	must(t, List(dir, func() {}, func(e Entry) error {
		found[e.Name] = e
		return nil
	}))
	if len(found) != 603 || string(found["a\uFFFDb"].NameBytes) != "a\xffb" || found["fifo"].Type != "fifo" {
		t.Fatal(len(found), found["a\uFFFDb"], found["fifo"])
	}
	e, err := Stat(filepath.Join(dir, "link"), false)
	must(t, err)
	if e.Type != "link" || e.Target == nil || *e.Target != "/no/where" {
		t.Fatalf("%+v", e)
	}
	_, err = Stat(filepath.Join(dir, "link"), true)
	wants(t, err, "ENOENT")
	wants(t, List(filepath.Join(dir, "fifo"), t.FailNow, nil), "ENOTDIR")
}

func TestRemoveMkdirRenameChange(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, Mkdir(at("a/b/c"), 0o1777, true, -1, -1))
	must(t, Mkdir(at("a/b/c"), 0o700, true, -1, -1))
	wants(t, Mkdir(at("a/b/c"), 0o700, false, -1, -1), "EEXIST")
	wants(t, Mkdir(at("x/y"), 0o700, false, -1, -1), "ENOENT")
	if e, err := Stat(at("a/b/c"), false); err != nil || e.Mode != "1777" {
		t.Fatalf("%+v %v", e, err)
	}
	put(t, at("a/file"), "1")
	put(t, at("other"), "2")
	wants(t, Rename(at("a/file"), at("other"), false), "EEXIST")
	must(t, Rename(at("a/file"), at("other"), true))
	must(t, Rename(at("other"), at("moved"), false))
	if text(t, at("moved")) != "1" {
		t.Fatal("not moved")
	}
	mode := uint32(0o640)
	old := int64(-1000)
	must(t, Change(at("moved"), &mode, -1, -1, &old))
	if e, _ := Stat(at("moved"), false); e.Mode != "0640" || e.ModifiedAtMs != -1000 {
		t.Fatalf("%+v", e)
	}
	must(t, os.Symlink(at("a"), at("to-a")))
	wants(t, Remove(at("a"), false), "EISDIR")
	must(t, Remove(at("to-a"), true)) // the link alone
	if _, err := Stat(at("a/b/c"), false); err != nil {
		t.Fatal("the link was followed")
	}
	for _, path := range []string{"/", "//", "/a/..", "/a/.", "/a/../", "/.", "/.//"} {
		wants(t, named(path), "EINVAL") // not Remove: it would be this machine's
	}
	wants(t, Remove(at("a")+"/b/..", true), "EINVAL")
	must(t, Remove(at("a"), true))
	must(t, Remove(at("moved"), false))
	wants(t, Remove(at("moved"), true), "ENOENT")
	alone(t, dir)
}

func TestPaths(t *testing.T) {
	for _, path := range []string{"", "a", "./a", "/a\x00b", "/" + strings.Repeat("x", MaxPath)} {
		if CheckPath(path) == nil {
			t.Errorf("%.20q is taken", path)
		}
	}
	for _, path := range []string{"/", "/a/../b", "/\xff", "/" + strings.Repeat("x", MaxPath-1)} {
		if err := CheckPath(path); err != nil {
			t.Error(err)
		}
	}
}
