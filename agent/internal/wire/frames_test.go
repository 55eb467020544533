package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFrames(t *testing.T) {
	good := "\x00\x00\x00\x03abc\x00\x00\x00\x01d\x00\x00\x00\x00"
	for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r },
		"bytes": iotest.OneByteReader, "early end": iotest.DataErrReader} {
		got, err := io.ReadAll(&Frames{R: wrap(strings.NewReader(good))})
		if err != nil || string(got) != "abcd" {
			t.Fatalf("%s: %q %v", name, got, err)
		}
		for n := range len(good) {
			if _, err := io.ReadAll(&Frames{R: wrap(strings.NewReader(good[:n]))}); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: a body that was cut after %d bytes is taken: %v", name, n, err)
			}
		}
	}
	var vectors struct {
		Bodies []struct {
			Name   string
			Chunks []string
			Body   string
		}
		Cut []string
	}
	golden(t, "fs-frames", &vectors)
	read := func(text string) (string, error) {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(&Frames{R: bytes.NewReader(b)})
		return hex.EncodeToString(got), err
	}
	for _, v := range vectors.Bodies {
		if got, err := read(v.Body); err != nil || got != strings.Join(v.Chunks, "") {
			t.Fatalf("%s: %s %v", v.Name, got, err)
		}
	}
	for _, cut := range vectors.Cut {
		if _, err := read(cut); err == nil {
			t.Fatalf("%q is taken for whole", cut)
		}
	}
	if len(vectors.Bodies) == 0 {
		t.Fatal("no vectors")
	}
	if _, err := io.ReadAll(&Frames{R: bytes.NewReader([]byte{0, 1, 0, 1})}); err == nil {
		t.Fatal("a frame of 65537 bytes is taken")
	}
}
