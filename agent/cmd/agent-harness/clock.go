package main

import (
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/safe"
)

// stoodFor is how long a machine's clock stands still when its process is stopped, however short that is.
const stoodFor = time.Minute

// clock is that of the machine that the harness plays; the host's own is never touched. Each SIGCONT puts it back by a minute.
type clock struct{ offUs atomic.Int64 }

func (c *clock) follow() {
	went := make(chan os.Signal, 1)
	signal.Notify(went, syscall.SIGCONT)
	safe.Go(func() {
		for range went {
			c.offUs.Add(-stoodFor.Microseconds())
		}
	})
}

func (c *clock) Clock() int64 { return time.Now().UnixMicro() + c.offUs.Load() }

func (c *clock) StepClock(byUs int64) error {
	c.offUs.Add(byUs)
	return nil
}
