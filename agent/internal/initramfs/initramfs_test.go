package initramfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

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
