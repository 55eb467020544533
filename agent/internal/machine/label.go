package machine

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/workfort/nexus/agent/internal/files"
)

const (
	labelPath = "/etc/nexus/image.yaml"
	maxLabel  = 64 << 10
)

// NameImage writes into the image's label which image and which build it is, at the first boot of a workspace: images of the
// same inputs have the same bytes, so the build left it open. A file of somebody else is left alone.
func NameImage(p Params) error { return nameImage("", p) }

func nameImage(root string, p Params) error {
	path := root + labelPath
	file, err := files.Open(path)
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxLabel+1))
	if err != nil || len(text) > maxLabel {
		return err
	}
	named := fill(string(text), p)
	if named == string(text) {
		return nil
	}
	next := filepath.Join(filepath.Dir(path), ".image.yaml.new")
	_ = os.Remove(next) // of a boot that was cut off
	if err := os.WriteFile(next, []byte(named), 0o644); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// fill puts what is known in the place of nulls.
func fill(text string, p Params) string {
	lines := strings.Split(text, "\n")
	for key, value := range map[string]string{"image": p.Image, "image_name": p.ImageName, "build": p.Build} {
		for i, line := range lines {
			if value != "" && line == key+": null" {
				lines[i] = key + ": " + strconv.Quote(value)
			}
		}
	}
	return strings.Join(lines, "\n")
}
