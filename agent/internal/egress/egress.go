// Package egress speaks to the host on egress streams: it rings the bell and says when the guest goes down.
package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/workfort/nexus/agent/internal/wire"
)

const (
	bellTimeout   = 10 * time.Second
	endingTimeout = 500 * time.Millisecond
)

// Client holds the present egress connection.
type Client struct {
	Facts func() wire.Facts

	mu  sync.Mutex
	now *http2.ClientConn
}

// Use rings the bell on a fresh connection and keeps it until it ends. It closes conn. The error says why the bell was not
// answered; a connection that ends later is none.
func (c *Client) Use(conn net.Conn) error {
	defer conn.Close()
	watched := &watched{Conn: conn, closed: make(chan struct{})}
	// Pings find a host that is gone without a word, on a vsock whose VM was loaded for example.
	t := &http2.Transport{AllowHTTP: true, ReadIdleTimeout: 30 * time.Second, PingTimeout: 30 * time.Second,
		MaxHeaderListSize: 16 << 10}
	cc, err := t.NewClientConn(watched)
	if err != nil {
		return err
	}
	defer cc.Close()
	if err := post(cc, bellTimeout, "/v1/bell", c.Facts()); err != nil {
		return err
	}
	c.mu.Lock()
	c.now = cc
	c.mu.Unlock()
	<-watched.closed
	c.mu.Lock()
	if c.now == cc {
		c.now = nil
	}
	c.mu.Unlock()
	return nil
}

// Ending tells the host that the guest goes down, and waits for the answer for a short time. A connection may just have been
// lost, and the next one not be there yet: then it is told on that.
func (c *Client) Ending(kind, by string) {
	deadline := time.Now().Add(endingTimeout)
	for left := endingTimeout; left > 0; left = time.Until(deadline) {
		if cc := c.connection(); cc != nil && post(cc, left, "/v1/ending", wire.Ending{Kind: kind, By: by}) == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *Client) connection() *http2.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func post(cc *http2.ClientConn, timeout time.Duration, path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", "http://nexus"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := cc.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, wire.MaxJSON))
	if res.StatusCode >= 300 {
		return fmt.Errorf("the host answered %s with %d", path, res.StatusCode)
	}
	return nil
}

// watched tells when the HTTP/2 client closes the connection, which it does when it has ended.
type watched struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (w *watched) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}
