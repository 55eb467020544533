package account

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseEnvironment(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"":                                     {},
		"A=\"1\"\nB=\"two words\"\n":           {"A": "1", "B": "two words"},
		`A="\"'\\$HOME\` + "`id\\`" + `\$x"`:   {"A": `"'\$HOME` + "`id`" + "$x"},
		"A=\"one\ntwo=2\nthree\"\nB=\"x\"":     {"A": "one\ntwo=2\nthree", "B": "x"},
		"# A=1\n\nA=plain\nexport B=1\n1C=2\n": {"A": "plain"},
		"A=\"never closed\nB=1\n":              {"A": `"never closed`, "B": "1"},
		"A=\"x\x00\"\nB=1":                     {"B": "1"},
		"A=\"1\" # comment\nB=\"2\"":           {"A": "1", "B": "2"},
		"A=\"\\n\\\"":                          {"A": `"\n\"`},
		"=x\n==\n_=1":                          {"_": "1"},
	} {
		if got := parseEnvironment(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
	if n := len(parseEnvironment(strings.Repeat("A=1\n", 9) + many(1000))); n != maxVariables {
		t.Errorf("%d variables", n)
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("V" + strings.Repeat("x", i) + "=\"y\"\n")
	}
	return b.String()
}

func TestEnvironOfImage(t *testing.T) {
	root := rootWith(t, map[string]string{"environment": "A=distribution\nB=kept\n"})
	if err := os.Mkdir(filepath.Join(root, "etc/nexus"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "A=\"image\"\nPATH=\"/opt/bin\"\nHOME=\"/nowhere\"\nC=\"image\"\n"
	if err := os.WriteFile(filepath.Join(root, "etc/nexus/environment"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got := Environ(root, User{Name: "u", Home: "/home/u"}, map[string]string{"C": "command"})
	for _, want := range []string{"A=image", "B=kept", "C=command", "PATH=/opt/bin", "HOME=/home/u"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not in %q", want, got)
		}
	}
}
