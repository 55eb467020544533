package machine

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/proc"
	"github.com/workfort/nexus/agent/internal/safe"
)

// jobsTimeout bounds the question to systemd, which is busy at that moment.
const jobsTimeout = 3 * time.Second

// kinds are the ends of a machine by the names that systemd has for them. A kexec is none: the VMM goes on.
var kinds = map[string]string{"poweroff": "poweroff", "halt": "halt", "reboot": "reboot"}

// SystemdKind says to what end systemd takes the machine down; nothing if the agent's service alone was stopped.
func SystemdKind(table *proc.Table) string {
	if kind := shutdownKind(files.Small("/proc/1/cmdline")); kind != "" {
		return kind
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return ""
	}
	r, w, err := os.Pipe()
	if err != nil {
		return ""
	}
	defer r.Close()
	_ = r.SetReadDeadline(time.Now().Add(jobsTimeout))
	safe.Go(func() {
		defer w.Close()
		for _, path := range []string{"/usr/bin/systemctl", "/bin/systemctl"} {
			if run(table, path, []string{"list-jobs", "--no-legend", "--no-pager", "--plain"}, w) {
				return
			}
		}
	})
	text, _ := io.ReadAll(io.LimitReader(r, 256<<10))
	return jobsKind(string(text))
}

// shutdownKind reads PID 1's command line: in the last act, or after `poweroff --force`, it is systemd-shutdown.
func shutdownKind(cmdline string) string {
	args := strings.Split(cmdline, "\x00")
	if len(args) < 2 || filepath.Base(args[0]) != "systemd-shutdown" {
		return ""
	}
	return kinds[args[1]]
}

// jobsKind reads the list of jobs: number, unit, what is done to it, how far it is.
func jobsKind(text string) string {
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "start" {
			if name, ok := strings.CutSuffix(f[1], ".target"); ok && kinds[name] != "" {
				return kinds[name]
			}
		}
	}
	return ""
}

// SystemdLast is the last act of a shutdown by systemd, with every process gone and the file systems at rest. A power-off
// becomes a reset, which every VMM sees; a reboot is one already.
func SystemdLast(verb string) {
	if verb != "poweroff" && verb != "halt" {
		return
	}
	defer Reset()
	defer safe.Recover()
	rest()
}
