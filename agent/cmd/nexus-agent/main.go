// nexus-agent is the guest's side of the channel.
package main

import (
	"fmt"

	"github.com/workfort/nexus/agent/internal/wire"
)

func main() {
	fmt.Println(wire.Version)
}
