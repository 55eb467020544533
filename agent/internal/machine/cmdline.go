// Package machine is what the agent does to the machine it runs in: mounts, clock, host name, power.
package machine

import (
	"strings"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/files"
)

// Params are the parameters of the kernel's command line that are meant for the agent.
type Params struct {
	Root      string // device of the root file system
	Init      string // agent or image
	Hostname  string
	Transport string // serial, vsock or nothing: whichever is there
	Image     string // of the root, with the name that it had at the start, and the build it came from
	ImageName string
	Build     string
	Mounts    []disks.Mount // data disks, in their order
}

// ReadParams reads the command line; /proc is mounted.
func ReadParams() Params { return parseParams(files.Small("/proc/cmdline")) }

func parseParams(line string) Params {
	p := Params{Root: "/dev/vda", Init: "agent"}
	for _, word := range strings.Fields(line) {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "nexus.root":
			p.Root = value
		case "nexus.init":
			p.Init = value
		case "nexus.hostname":
			p.Hostname = value
		case "nexus.image":
			p.Image = value
		case "nexus.image_name":
			p.ImageName = value
		case "nexus.build":
			p.Build = value
		case "nexus.transport":
			p.Transport = value
		case "nexus.mount":
			if m, ok := disks.ParseMount(value); ok {
				p.Mounts = append(p.Mounts, m)
			}
		}
	}
	return p
}
