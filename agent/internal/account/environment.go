package account

import (
	"io"
	"strings"

	"github.com/workfort/nexus/agent/internal/files"
)

// maxVariables bounds what a file of the guest may put into an environment.
const maxVariables = 256

// ImageEnvironment reads /etc/nexus/environment below root ("" for the real one): the environment that the image was built with.
func ImageEnvironment(root string) map[string]string {
	file, err := files.Open(root + "/etc/nexus/environment")
	if err != nil {
		return nil
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile))
	if err != nil {
		return nil
	}
	return parseEnvironment(string(text))
}

// parseEnvironment reads NAME="value" as sh does: in a value a backslash stands before each of \ " $ and `, and lines may end
// inside of it. Plain NAME=value is read, too; anything else is passed over.
func parseEnvironment(text string) map[string]string {
	env := map[string]string{}
	for text != "" && len(env) < maxVariables {
		line, rest, _ := strings.Cut(text, "\n")
		name, value, ok := strings.Cut(line, "=")
		if ok && strings.HasPrefix(value, `"`) {
			if inner, after, closed := quoted(text[len(name)+2:]); closed {
				value = inner
				_, rest, _ = strings.Cut(after, "\n")
			}
		}
		if ok && isName(name) && strings.IndexByte(value, 0) < 0 {
			env[name] = value
		}
		text = rest
	}
	return env
}

// quoted reads up to the closing quote.
func quoted(text string) (value, after string, closed bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return b.String(), text[i+1:], true
		case c == '\\' && i+1 < len(text) && strings.IndexByte("\\\"$`", text[i+1]) >= 0:
			i++
			b.WriteByte(text[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

func isName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i] | 0x20
		if !(c >= 'a' && c <= 'z' || s[i] == '_' || i > 0 && s[i] >= '0' && s[i] <= '9') {
			return false
		}
	}
	return s != ""
}
