package egress

import (
	"net"
	"time"
)

const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
	// settled is how long a connection lived that counts as a good one: the next dial comes at once again.
	settled = time.Second
)

// Redial keeps an egress connection: it dials again when one is lost, after 10 ms, doubled to 1 s. It never returns.
func Redial(c *Client, dial func() (net.Conn, error)) {
	pause := firstPause
	for {
		begun := time.Now()
		conn, err := dial()
		if err == nil {
			err = c.Use(conn)
		}
		if err == nil && time.Since(begun) > settled {
			pause = firstPause
		}
		time.Sleep(pause)
		pause = min(2*pause, lastPause)
	}
}
