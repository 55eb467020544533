// Package disks mounts the disks of a machine, finds them again and grows the file systems on them.
package disks

import (
	"os"
	"strconv"
	"strings"
)

// Mounted is one line of /proc/self/mountinfo (proc(5)).
type Mounted struct {
	Device string // major:minor
	Root   string // what of the file system is mounted
	Point  string
	Type   string
}

// All is what is mounted, in the order of the mounts.
func All() []Mounted {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return parse(string(text))
}

func parse(text string) []Mounted {
	var all []Mounted
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) <= 5 {
			continue
		}
		m := Mounted{Device: f[2], Root: Unescape(f[3]), Point: Unescape(f[4])}
		for i, word := range f[6:] { // optional fields, a hyphen, then the type
			if word == "-" && 6+i+1 < len(f) {
				m.Type = f[6+i+1]
				break
			}
		}
		all = append(all, m)
	}
	return all
}

// Unescape undoes the kernel's octal escapes (\040 is a blank).
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
