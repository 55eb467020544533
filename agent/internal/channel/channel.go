package channel

import (
	"fmt"
	"os"

	"github.com/workfort/nexus/agent/internal/egress"
)

// Serve serves one transport, and returns only with the reason why it cannot.
func Serve(transport string, s Server, client *egress.Client) error {
	if transport == "" {
		transport = "serial"
		if _, err := os.Stat("/dev/vsock"); err == nil {
			transport = "vsock"
		}
	}
	switch transport {
	case "serial":
		return fmt.Errorf("kernel events: %w", Serial(s))
	case "vsock":
		return fmt.Errorf("vsock: %w", Vsock(s, client))
	}
	return fmt.Errorf("nexus.transport=%s is neither serial nor vsock", transport)
}
