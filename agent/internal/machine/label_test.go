package machine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNameImage(t *testing.T) {
	root := t.TempDir()
	p := Params{Image: "img_1", ImageName: "base", Build: ""}
	if err := nameImage(root, p); err != nil {
		t.Error("no label:", err)
	}
	path := filepath.Join(root, labelPath)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"image: null\nimage_name: null\nbuild: null\nos: null\n": "image: \"img_1\"\nimage_name: \"base\"\nbuild: null\nos: null\n",
		"image: \"img_0\"\n": "image: \"img_0\"\n",
		"mine":               "mine",
		"":                   "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := nameImage(root, p); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files", len(entries))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := nameImage(root, p); err == nil {
		t.Error("a folder was taken for a label")
	}
}
