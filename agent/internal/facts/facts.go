// Package facts says what machine the agent runs in.
package facts

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/wire"
)

// NewID makes the id of this agent process.
func NewID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b[:])
}

// Gather reads the facts anew: host name and OS may change in the life of a guest.
func Gather(agentID string) wire.Facts {
	f := wire.Facts{
		Generation:   wire.Generation,
		AgentVersion: wire.Version,
		AgentID:      agentID,
		BootID:       Clean(files.Small("/proc/sys/kernel/random/boot_id")),
		OS:           prettyName(),
		Init:         initSystem(),
		Arch:         arch(),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = Clean(unix.ByteSliceToString(u.Release[:]))
		f.Hostname = Clean(unix.ByteSliceToString(u.Nodename[:]))
	}
	return f
}

func arch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// initSystem looks at what is running: Alpine's PID 1 is BusyBox's init, which starts OpenRC.
func initSystem() string {
	if os.Getpid() == 1 {
		return "agent"
	}
	if exists("/run/systemd/system") {
		return "systemd"
	}
	if exists("/run/openrc") {
		return "openrc"
	}
	return "busybox"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func prettyName() string {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		for _, line := range strings.Split(files.Small(path), "\n") {
			if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				return Clean(strings.Trim(v, `"'`))
			}
		}
	}
	return ""
}

// Clean bounds a text of the guest and takes out control characters.
func Clean(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(s), "?")
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) {
			return -1
		}
		return r
	}, s)
	if len(s) > 256 {
		s = strings.ToValidUTF8(s[:256], "")
	}
	return s
}
