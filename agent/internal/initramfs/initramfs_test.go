package initramfs

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The size comes from a superblock that mke2fs itself wrote.
func TestExt4Size(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mke2fs, err = exec.LookPath("/usr/sbin/mke2fs"); err != nil {
			t.Skip("mke2fs is not installed")
		}
	}
	for _, c := range []struct {
		blockSize, size string
		want            [2]uint64
	}{
		{"1024", "20M", [2]uint64{20480, 1024}},
		{"4096", "64M", [2]uint64{16384, 4096}},
		{"4096", "40G", [2]uint64{10485760, 4096}},
	} {
		path := filepath.Join(t.TempDir(), "fs")
		// `-n` would write nothing; a lazy file system of 40 GiB is sparse.
		out, err := exec.Command(mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-b",
			c.blockSize, path, c.size).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		super := make([]byte, 1024)
		_, err = f.ReadAt(super, 1024)
		f.Close()
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		blocks, size, err := ext4Size(super)
		if err != nil || blocks != c.want[0] || size != c.want[1] {
			t.Errorf("%s: %d blocks of %d, %v", c.size, blocks, size, err)
		}
	}
}

func TestExt4SizeOfGarbage(t *testing.T) {
	if _, _, err := ext4Size(make([]byte, 1024)); err == nil {
		t.Error("zeros are taken for ext4")
	}
	garbage := []byte(strings.Repeat("\xff", 1024))
	garbage[0x38], garbage[0x39] = 0x53, 0xef
	if _, size, err := ext4Size(garbage); err == nil {
		t.Errorf("blocks of %d bytes", size)
	}
}

func TestEmpty(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{"init", "lib/modules/nexus.load", "lib/modules/6.1/kernel/a.ko", "lib/modules/6.0/b.ko", "dev/x/y"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, p)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, p), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "kept"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	empty(root, filepath.Join(root, "lib/modules/6.1"))
	var left []string
	_ = filepath.Walk(root, func(p string, info os.FileInfo, _ error) error {
		if !info.IsDir() {
			left = append(left, strings.TrimPrefix(p, root))
		}
		return nil
	})
	if len(left) != 1 || left[0] != "/lib/modules/6.1/kernel/a.ko" {
		t.Errorf("%q", left)
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Error("a link was followed")
	}
}
