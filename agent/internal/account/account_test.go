package account

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const passwd = `root:x:0:0:root:/root:/bin/bash
broken
1000:x:7:7::/seven:/bin/sh
u:x:1000:1000:U:/home/u:
big:x:4294967296:0::/:/bin/sh
none:x:4294967295:0::/:/bin/sh
`

const group = "root:x:0:\nwheel:x:10:u,v\nu:x:1000:u\naudio:x:29:v,u\nbad:x:minus:u\n"

func rootWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLookup(t *testing.T) {
	root := rootWith(t, map[string]string{"passwd": passwd, "group": group})
	for who, want := range map[string]User{
		"root": {"root", 0, 0, []uint32{0}, "/root", "/bin/bash"},
		"u":    {"u", 1000, 1000, []uint32{1000, 10, 29}, "/home/u", "/bin/sh"},
		"1000": {"1000", 7, 7, []uint32{7}, "/seven", "/bin/sh"}, // a name beats a number
		"7":    {"1000", 7, 7, []uint32{7}, "/seven", "/bin/sh"},
		"4321": {"4321", 4321, 4321, []uint32{4321}, "/", "/bin/sh"},
	} {
		if got, err := Lookup(root, who); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", who, got, err)
		}
	}
	for _, who := range []string{"v", "", "broken", "big", "none", "4294967295", "-1", "+1", "01", "0x1", "u\n"} {
		if got, err := Lookup(root, who); !errors.Is(err, ErrNoUser) {
			t.Errorf("%q: %+v, %v", who, got, err)
		}
	}
}

func TestLookupWithoutFiles(t *testing.T) {
	for _, who := range []string{"root", "0"} {
		if u, err := Lookup(t.TempDir(), who); err != nil || u.UID != 0 || u.Home != "/root" || u.Name != "root" {
			t.Errorf("%s: %+v, %v", who, u, err)
		}
	}
}

// The files are the guest's: whatever they are, the answer comes, and soon.
func TestLookupInHostileFiles(t *testing.T) {
	long := rootWith(t, map[string]string{"passwd": strings.Repeat("x", maxLine+1)})
	if _, err := Lookup(long, "u"); err == nil {
		t.Error("a line without end is taken")
	}
	huge := rootWith(t, map[string]string{"passwd": strings.Repeat("a:x:1:1::/:\n", 500_000) + passwd})
	if _, err := Lookup(huge, "u"); !errors.Is(err, ErrNoUser) {
		t.Errorf("read beyond the bound: %v", err)
	}
	fifo := rootWith(t, nil)
	if err := syscall.Mkfifo(filepath.Join(fifo, "etc", "passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup(fifo, "u"); err == nil {
		t.Error("a FIFO is taken")
	}
	many := rootWith(t, map[string]string{"passwd": passwd, "group": strings.Repeat("g:x:5:u\n", 5000)})
	if u, err := Lookup(many, "u"); err != nil || len(u.Groups) != maxGroups {
		t.Errorf("%d groups, %v", len(u.Groups), err)
	}
}

func TestEnviron(t *testing.T) {
	root := rootWith(t, map[string]string{"passwd": passwd,
		"environment": "# A=1\nexport EDITOR=\"vi m\"\nLANG='de_DE.UTF-8'\nHOME=/wrong\nbad line\n=x\n"})
	u, _ := Lookup(root, "u")
	got := Environ(root, u, map[string]string{"X": "y=z", "SHELL": "/bin/zsh"})
	want := []string{"EDITOR=vi m", "HOME=/home/u", "LANG=de_DE.UTF-8", "LOGNAME=u",
		"PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games", "SHELL=/bin/zsh", "USER=u", "X=y=z"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	r, _ := Lookup(root, "root")
	if env := Environ(rootWith(t, nil), r, nil); !slices.Contains(env, "LANG=C.UTF-8") ||
		!slices.Contains(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") {
		t.Errorf("%q", env)
	}
}
