// nexus-probe prints one line of JSON: what the host can do, found out by doing it, or what files take of it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/workfort/nexus/agent/internal/probe"
	"github.com/workfort/nexus/agent/internal/wire"
)

func main() {
	verb := ""
	if len(os.Args) == 2 || len(os.Args) > 2 && os.Args[1] == "extents" {
		verb = os.Args[1]
	}
	var answer any
	switch verb {
	case "kvm":
		answer = probe.CheckKVM()
	case "kvm-run": // the child of kvm
		answer = probe.RunGuest()
	case "tsc":
		answer = probe.MeasureTSC()
	case "extents":
		answer = probe.ReadExtents(os.Args[2:])
	case "version":
		fmt.Println(wire.Version)
		return
	default:
		fmt.Fprintln(os.Stderr, "usage: nexus-probe kvm | tsc | extents FILE... | version")
		os.Exit(2)
	}
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}
