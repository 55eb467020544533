package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
)

// golden reads vectors that the host's tests read, too.
func golden(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("../../../test/vectors/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenPreambles(t *testing.T) {
	var v struct {
		Good []struct {
			Name, Hex string
			Spec      Spec
		}
		Bad []struct{ Name, Hex string }
	}
	golden(t, "exec-preamble", &v)
	if len(v.Good) == 0 || len(v.Bad) == 0 {
		t.Fatal("no vectors")
	}
	for _, c := range v.Good {
		in := bytes.NewReader(append(unhex(t, c.Hex), "stdin"...))
		got, err := ReadSpec(in)
		if err != nil || !reflect.DeepEqual(got, c.Spec) {
			t.Errorf("%s: %+v, %v; want %+v", c.Name, got, err, c.Spec)
		}
		if rest, _ := io.ReadAll(in); string(rest) != "stdin" {
			t.Errorf("%s: %q is left for the standard input", c.Name, rest)
		}
	}
	for _, c := range v.Bad {
		if spec, err := ReadSpec(bytes.NewReader(unhex(t, c.Hex))); err == nil {
			t.Errorf("%s: taken as %+v", c.Name, spec)
		}
	}
}

func TestGoldenFrames(t *testing.T) {
	var v struct {
		Good []struct {
			Name, Hex string
			Frames    []struct {
				Channel, Data string
				Gap           uint64
			}
		}
	}
	golden(t, "exec-frames", &v)
	number := map[string]byte{"stdout": Stdout, "stderr": Stderr}
	for _, c := range v.Good {
		if strings.Contains(c.Name, "empty") { // the agent sends none
			continue
		}
		got := []byte{}
		for _, f := range c.Frames {
			if f.Gap > 0 {
				got = AppendGap(got, number[f.Channel], f.Gap)
				continue
			}
			data, head := unhex(t, f.Data), make([]byte, FrameHead)
			PutHead(head, number[f.Channel], len(data))
			got = append(append(got, head...), data...)
		}
		if hex.EncodeToString(got) != c.Hex {
			t.Errorf("%s: %x, want %s", c.Name, got, c.Hex)
		}
	}
}

func TestGoldenFacts(t *testing.T) {
	var v struct {
		Facts  []struct{ Facts json.RawMessage }
		Ending []struct{ Ending json.RawMessage }
	}
	golden(t, "facts", &v)
	same := func(raw []byte, into any) {
		t.Helper()
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(into)
		if err != nil {
			t.Fatal(err)
		}
		var want, got map[string]any
		if json.Unmarshal(raw, &want) != nil || json.Unmarshal(out, &got) != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s, want %s", out, raw)
		}
	}
	if len(v.Facts) == 0 || len(v.Ending) == 0 {
		t.Fatal("no vectors")
	}
	for _, c := range v.Facts {
		same(c.Facts, &Facts{})
	}
	for _, c := range v.Ending {
		same(c.Ending, &Ending{})
	}
}

func TestGoldenNow(t *testing.T) {
	var v struct {
		Good []struct{ Now json.RawMessage }
	}
	golden(t, "now", &v)
	if len(v.Good) == 0 {
		t.Fatal("no vectors")
	}
	for _, c := range v.Good {
		var now Now
		var want, got any
		if err := json.Unmarshal(c.Now, &now); err != nil {
			t.Fatal(err)
		}
		made, _ := json.Marshal(now)
		if json.Unmarshal(c.Now, &want) != nil || json.Unmarshal(made, &got) != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s, want %s", made, c.Now)
		}
	}
}

func TestGoldenAgent(t *testing.T) {
	var v struct {
		Good []struct{ Agent map[string]any }
	}
	golden(t, "agent", &v)
	for _, c := range v.Good {
		raw, _ := json.Marshal(c.Agent)
		var agent Agent
		if err := json.Unmarshal(raw, &agent); err != nil {
			t.Fatal(err)
		}
		made, _ := json.Marshal(agent)
		var got map[string]any
		if json.Unmarshal(made, &got) != nil || !reflect.DeepEqual(got, c.Agent) {
			t.Errorf("%s, want %s", made, raw)
		}
	}
	if len(v.Good) == 0 {
		t.Fatal("no vectors")
	}
}

// A length is believed only up to its bound: this would take 4 GiB otherwise.
func TestSpecLengthIsBoundBeforeAllocation(t *testing.T) {
	before := testing.AllocsPerRun(10, func() {
		_, _ = ReadSpec(bytes.NewReader(binary.BigEndian.AppendUint32(nil, 0xffffffff)))
	})
	if before > 20 {
		t.Errorf("%v allocations", before)
	}
}

func FuzzReadSpec(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x1f" + `{"id":"a","argv":["true"],"x":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := ReadSpec(bytes.NewReader(b))
		if err == nil && (len(spec.Argv) == 0 || !ValidID(spec.ID)) {
			t.Errorf("%+v", spec)
		}
	})
}
