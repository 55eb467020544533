package fs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pack(t *testing.T, root string) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, (&Tree{}).Export(context.Background(), root, &b, func() {}))
	return b.Bytes()
}

// facts are one line for each file below a root: all that a copy has to keep.
func facts(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	inodes := map[uint64]int{}
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		if _, ok := inodes[st.Ino]; !ok {
			inodes[st.Ino] = len(inodes)
		}
		content := ""
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			content = fmt.Sprint(len(text(t, path)), " ", checksum(text(t, path)))
		} else if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			content, _ = os.Readlink(path)
		}
		name, _ := filepath.Rel(root, path)
		lines = append(lines, fmt.Sprintf("%q %o %d:%d %d #%d %s %q", name, st.Mode, st.Uid, st.Gid, st.Mtim.Nano(), inodes[st.Ino],
			content, xattrs(path)["user.note"]))
		return nil
	}))
	return strings.Join(lines, "\n")
}

func checksum(s string) (sum uint64) {
	for i := 0; i < len(s); i++ {
		sum = sum*31 + uint64(s[i])
	}
	return sum
}

// sample is a tree with one of everything.
func sample(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	at := func(name string) string { return filepath.Join(root, name) }
	deep := "a/" + strings.Repeat("long-name/", 15) + strings.Repeat("n", 200)
	must(t, os.MkdirAll(filepath.Dir(at(deep)), 0o755))
	put(t, at(deep), "deep")
	put(t, at("a/empty"), "")
	put(t, at("a/block"), strings.Repeat("x", 1024))
	put(t, at("späce näme"), "utf-8")
	put(t, at("bytes\xff\xfe"), "not utf-8")
	put(t, at("exec"), "#!/bin/sh\n")
	must(t, unix.Chmod(at("exec"), 0o4755))
	_ = unix.Setxattr(at("exec"), "user.note", []byte("with\nnew line \xff"), 0)
	must(t, os.Link(at("exec"), at("a/hard")))
	must(t, os.Symlink("../no/where", at("a/link")))
	must(t, os.Symlink(strings.Repeat("t", 300), at("long-target")))
	must(t, unix.Mkfifo(at("fifo"), 0o640))
	must(t, os.Mkdir(at("sticky"), 0o700))
	must(t, unix.Chmod(at("sticky"), 0o1777))
	f, err := os.Create(at("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("in the middle"), 3<<20)
	must(t, err)
	must(t, f.Truncate(64<<20))
	f.Close()
	put(t, at("hole"), "")
	must(t, os.Truncate(at("hole"), 1<<20))
	for name, ns := range map[string]int64{"exec": 1_234_567_890_123_456_789, "sticky": 1, "a": 946_684_800_000_000_000} {
		ts := unix.NsecToTimespec(ns)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{ts, ts}, 0))
	}
	if os.Getuid() == 0 {
		must(t, os.Chown(at("a/empty"), 1234, 3_000_000))
	}
	return root
}

func TestATreeArrivesAsItWas(t *testing.T) {
	from := sample(t)
	archive := pack(t, from)
	if len(archive) > 1<<20 {
		t.Fatalf("holes were sent: %d bytes", len(archive))
	}
	to := filepath.Join(t.TempDir(), "to")
	taken, err := Import(to, bytes.NewReader(archive))
	must(t, err)
	if a, b := facts(t, from), facts(t, to); a != b {
		t.Fatalf("%s\n\nis not\n\n%s", b, a)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(to, "sparse"), &st))
	if taken.Entries < 20 || st.Blocks*512 > 1<<20 {
		t.Fatalf("%+v, %d blocks", taken, st.Blocks)
	}
	if _, err = Import(to, bytes.NewReader(archive)); err != nil || facts(t, from) != facts(t, to) {
		t.Fatal("a second time it is another one: ", err)
	}
}

func TestGNUTarReadsOurArchivesAndWeReadItsOwn(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("there is no tar")
	}
	from, theirs, ours := sample(t), t.TempDir(), filepath.Join(t.TempDir(), "ours")
	run := func(in []byte, args ...string) []byte {
		cmd := exec.Command("tar", args...)
		cmd.Stdin = bytes.NewReader(in)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil || errs.Len() > 0 {
			t.Fatalf("tar %v: %v %s", args, err, errs.String())
		}
		return out
	}
	run(pack(t, from), "-x", "-p", "--same-owner", "--xattrs", "-C", theirs)
	if a, b := facts(t, from), facts(t, theirs); a != b {
		t.Fatalf("%s\n\nis not\n\n%s", b, a)
	}
	archive := run(nil, "-c", "--sparse", "--format=posix", "--xattrs", "-C", from, ".")
	if _, err := Import(ours, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	if a, b := facts(t, from), facts(t, ours); a != b {
		t.Fatalf("%s\n\nis not\n\n%s", b, a)
	}
}

func TestOneFileIsATreeToo(t *testing.T) {
	from, to := sample(t), filepath.Join(t.TempDir(), "to")
	for _, name := range []string{"exec", "a/link"} {
		_, err := Import(to, bytes.NewReader(pack(t, filepath.Join(from, name))))
		must(t, err)
	}
	if text(t, filepath.Join(to, "exec")) != "#!/bin/sh\n" {
		t.Fatal("another content")
	}
	wants(t, (&Tree{}).Export(context.Background(), from+"/no", io.Discard, t.FailNow), "ENOENT")
	wants(t, (&Tree{}).Export(context.Background(), "/dev/null", io.Discard, t.FailNow), "NOT_REGULAR")
}

func TestWhatTheKernelMakesUpIsLeftOut(t *testing.T) {
	var b bytes.Buffer
	must(t, (&Tree{}).Export(context.Background(), "/proc", &b, func() {}))
	if b.Len() > 4096 {
		t.Fatalf("%d bytes of /proc", b.Len())
	}
}

// archiveOf makes an archive of these headers, each with a short content.
func archiveOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		must(t, w.WriteHeader(&h))
		if h.Size > 0 {
			_, _ = w.Write([]byte("evil"))
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func TestNothingIsWrittenOutsideTheDirectory(t *testing.T) {
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	must(t, os.Mkdir(outside, 0o755))
	put(t, filepath.Join(outside, "file"), "good")
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	hard := func(name, to string) tar.Header { return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink} }
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o777} }
	for name, headers := range map[string][]tar.Header{
		"a name with ..":            {file("../outside/file")},
		"a name with .. inside":     {file("a/../../outside/file")},
		"a hard link with ..":       {hard("x", "../outside/file")},
		"a link as a directory":     {link("l", outside), file("l/file")},
		"a relative one":            {link("l", "../outside"), file("l/file")},
		"a link, then a directory":  {link("l", outside), dir("l")},
		"a hard link through it":    {link("l", outside), hard("x", "l/file")},
		"a directory, then a link":  {dir("d"), link("d", outside)},
		"a directory under a file":  {file("f"), file("f/file")},
		"a directory behind a link": {link("l", outside), dir("l/new")},
	} {
		to := filepath.Join(base, "to")
		if _, err := Import(to, bytes.NewReader(archiveOf(t, headers...))); err == nil {
			t.Errorf("%s is taken", name)
		}
		entries, _ := os.ReadDir(outside)
		var st unix.Stat_t
		must(t, unix.Stat(outside, &st))
		if text(t, filepath.Join(outside, "file")) != "good" || len(entries) != 1 || st.Mode&0o7777 != 0o755 {
			t.Fatalf("%s went out", name)
		}
		must(t, os.RemoveAll(to))
	}
	// An absolute name is one below the directory; a link in the place of a file is replaced.
	to := filepath.Join(base, "to")
	_, err := Import(to, bytes.NewReader(archiveOf(t, file("/etc/passwd"), link("l", outside+"/file"), file("l"))))
	must(t, err)
	if text(t, filepath.Join(to, "etc/passwd")) != "evil" || text(t, filepath.Join(to, "l")) != "evil" {
		t.Fatal("not replaced")
	}
}

func TestALinkThatSomebodyPutsInTheWay(t *testing.T) {
	base := t.TempDir()
	outside, to := filepath.Join(base, "outside"), filepath.Join(base, "to")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.MkdirAll(filepath.Join(to, "d"), 0o755))
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Remove(filepath.Join(to, "d"))
				_ = os.Symlink(outside, filepath.Join(to, "d"))
				_ = os.Remove(filepath.Join(to, "d"))
				_ = os.Mkdir(filepath.Join(to, "d"), 0o755)
			}
		}
	}()
	archive := archiveOf(t, tar.Header{Name: "d", Typeflag: tar.TypeDir}, tar.Header{Name: "d/file", Typeflag: tar.TypeReg},
		tar.Header{Name: "e/file", Typeflag: tar.TypeReg}, tar.Header{Name: "d/other", Typeflag: tar.TypeReg})
	for range 300 {
		_, _ = Import(to, bytes.NewReader(archive))
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Fatal("it was followed: ", entries, err)
	}
}

func TestArchivesThatAreCutOrRubbish(t *testing.T) {
	from := sample(t)
	archive := pack(t, from)
	var broken *Broken
	for n := 0; n < len(archive); n += 4096 {
		_, err := Import(filepath.Join(t.TempDir(), "to"), failing{bytes.NewReader(archive[:n])})
		if !errors.As(err, &broken) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
	random := rand.New(rand.NewSource(7))
	for range 200 {
		bad := bytes.Clone(archive[:min(len(archive), 64<<10)])
		for range 1 + random.Intn(20) {
			bad[random.Intn(len(bad))] = byte(random.Intn(256))
		}
		to := filepath.Join(t.TempDir(), "to")
		_, _ = Import(to, bytes.NewReader(bad)) // it neither panics nor goes elsewhere
		_ = os.RemoveAll(to)
	}
	_, err := Import(filepath.Join(t.TempDir(), "to"), strings.NewReader(strings.Repeat("rubbish ", 200)))
	wants(t, err, "ARCHIVE")
	_, err = Import(filepath.Join(t.TempDir(), "no/to"), strings.NewReader(""))
	wants(t, err, "ENOENT")
}
