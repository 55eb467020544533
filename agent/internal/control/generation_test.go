package control

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"testing"
)

// What generation 1 began with is answered as it was.
func TestGeneration1(t *testing.T) {
	var v struct {
		Exchanges []struct {
			Name, Method, Path string
			Body, Preamble     json.RawMessage
			Status             int
			JSON               map[string]any
			Output             *struct {
				Stdout, Stderr string
				Trailers       map[string]string
			}
		}
	}
	text, err := os.ReadFile("../../../test/vectors/generation-1.json")
	if err != nil || json.Unmarshal(text, &v) != nil || len(v.Exchanges) < 10 {
		t.Fatal("no vectors")
	}
	g := newGuest(t)
	for _, c := range v.Exchanges {
		var body io.Reader = bytes.NewReader(c.Body)
		if c.Preamble != nil {
			body = bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(c.Preamble))), c.Preamble...))
		}
		r := g.ask(c.Method, c.Path, body)
		if r.status != c.Status {
			t.Errorf("%s: %d %s", c.Name, r.status, r.body)
		}
		if c.Output != nil {
			if string(r.out[0]) != c.Output.Stdout || string(r.out[1]) != c.Output.Stderr {
				t.Errorf("%s: %q %q", c.Name, r.out[0], r.out[1])
			}
			for name, value := range c.Output.Trailers {
				if got := r.trailer.Get(name); got != value {
					t.Errorf("%s: %s is %q", c.Name, name, got)
				}
			}
		}
		var got any
		if c.JSON != nil && (json.Unmarshal(r.body, &got) != nil || !has(got, c.JSON)) {
			t.Errorf("%s: %s", c.Name, r.body)
		}
	}
}

// has says whether all of want is in got: fields may be more, and items of lists, in any order.
func has(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		for name, value := range want {
			ok = ok && has(got[name], value)
		}
		return ok
	case []any:
		got, ok := got.([]any)
		for _, value := range want {
			found := false
			for _, one := range got {
				found = found || has(one, value)
			}
			ok = ok && found
		}
		return ok
	}
	return got == want
}
