package machine

import (
	"reflect"
	"testing"

	"github.com/workfort/nexus/agent/internal/disks"
)

func TestParams(t *testing.T) {
	for line, want := range map[string]Params{
		"console=ttyS0 quiet\n": {Root: "/dev/vda", Init: "agent"},
		"nexus.root=/dev/vdb nexus.init=image nexus.hostname=web nexus.transport=vsock nexus.x=y": {Root: "/dev/vdb", Init: "image", Hostname: "web", Transport: "vsock"},
		"nexus.image=img_1 nexus.image_name=base nexus.build=bld_1":                               {Root: "/dev/vda", Init: "agent", Image: "img_1", ImageName: "base", Build: "bld_1"},
		"nexus.mount=vdb:/data nexus.mount=vdd:/x:ro nexus.mount=sda:/y": {Root: "/dev/vda", Init: "agent",
			Mounts: []disks.Mount{{Device: "vdb", Path: "/data"}, {Device: "vdd", Path: "/x", ReadOnly: true}}},
		"xnexus.init=image nexus.init":  {Root: "/dev/vda"},
		"nexus.root=PARTUUID=1-2 -- -s": {Root: "PARTUUID=1-2", Init: "agent"},
	} {
		if got := parseParams(line); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestSystemdKind(t *testing.T) {
	for cmdline, want := range map[string]string{
		"/lib/systemd/systemd-shutdown\x00poweroff\x00--log-level\x006\x00": "poweroff",
		"/usr/lib/systemd/systemd-shutdown\x00reboot\x00":                   "reboot",
		"/lib/systemd/systemd-shutdown\x00kexec\x00":                        "",
		"/lib/systemd/systemd-shutdown":                                     "",
		"/sbin/init\x00poweroff\x00":                                        "",
		"":                                                                  "",
	} {
		if got := shutdownKind(cmdline); got != want {
			t.Errorf("%q: %q", cmdline, got)
		}
	}
	for jobs, want := range map[string]string{
		"203 nexus-agent.service stop running\n289 poweroff.target start waiting\n":                           "poweroff",
		"1 reboot.target start waiting":                                                                       "reboot",
		"1 halt.target start running\n":                                                                       "halt",
		"1 poweroff.target stop waiting\n2 nexus-agent.service restart running\n3 kexec.target start waiting": "",
		"1 x-poweroff.target start waiting\n2 poweroff.targets start waiting":                                 "",
		"No jobs running.\n": "",
	} {
		if got := jobsKind(jobs); got != want {
			t.Errorf("%q: %q", jobs, got)
		}
	}
}

func TestUnder(t *testing.T) {
	for p, want := range map[string]bool{"/dev": true, "/dev/pts": true, "/device": false, "/": false, "/x/dev": false} {
		if under(p, "/dev") != want {
			t.Errorf("%s: %v", p, !want)
		}
	}
}
