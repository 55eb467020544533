package egress

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/workfort/nexus/agent/internal/wire"
)

type event struct {
	path string
	body map[string]any
}

// host serves egress connections and says what came.
func host(t *testing.T, status int) (dial func() (net.Conn, error), events chan event, conns chan net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	events, conns = make(chan event, 100), make(chan net.Conn, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			go (&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: http.HandlerFunc(
				func(w http.ResponseWriter, r *http.Request) {
					e := event{path: r.Method + " " + r.URL.Path}
					_ = json.NewDecoder(r.Body).Decode(&e.body)
					events <- e
					w.WriteHeader(status)
				})})
		}
	}()
	return func() (net.Conn, error) { return net.Dial("unix", l.Addr().String()) }, events, conns
}

func next[T any](t *testing.T, c chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestBellAndEnding(t *testing.T) {
	dial, events, conns := host(t, 204)
	client := &Client{Facts: func() wire.Facts { return wire.Facts{Generation: 1, Hostname: "web"} }}
	begun := time.Now()
	client.Ending("reboot", "guest") // nobody to tell
	if took := time.Since(begun); took > 20*endingTimeout {
		t.Errorf("it waited %v for nobody", took)
	}
	over := make(chan error, 1)
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	go func() { over <- client.Use(conn) }()
	if e := next(t, events); e.path != "POST /v1/bell" || e.body["hostname"] != "web" || e.body["generation"] != 1.0 {
		t.Errorf("%+v", e)
	}
	for client.connection() == nil {
		time.Sleep(time.Millisecond)
	}
	client.Ending("poweroff", "host")
	if e := next(t, events); e.path != "POST /v1/ending" || e.body["kind"] != "poweroff" || e.body["by"] != "host" {
		t.Errorf("%+v", e)
	}
	next(t, conns).Close()
	if err := next(t, over); err != nil {
		t.Errorf("%v", err)
	}
	if client.connection() != nil {
		t.Error("a connection that is over is kept")
	}
}

// Whatever happens to the connection, the bell rings again.
func TestRedial(t *testing.T) {
	dial, events, conns := host(t, 204)
	var tries atomic.Int32
	go Redial(&Client{Facts: func() wire.Facts { return wire.Facts{} }}, func() (net.Conn, error) {
		if tries.Add(1)%2 == 0 {
			return nil, net.ErrClosed
		}
		return dial()
	})
	for range 4 {
		if e := next(t, events); e.path != "POST /v1/bell" {
			t.Errorf("%+v", e)
		}
		next(t, conns).Close()
	}
}

// A guest that goes down while its connection is being made again says so on the new one.
func TestEndingOnTheNextConnection(t *testing.T) {
	dial, events, conns := host(t, 204)
	client := &Client{Facts: func() wire.Facts { return wire.Facts{} }}
	go Redial(client, dial)
	next(t, events)
	for range 3 {
		next(t, conns).Close()
		client.Ending("reboot", "guest")
		for e := next(t, events); e.path != "POST /v1/ending"; e = next(t, events) {
		}
	}
}

func TestBellThatIsRefused(t *testing.T) {
	dial, events, _ := host(t, 422)
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	client := &Client{Facts: func() wire.Facts { return wire.Facts{} }}
	if err := client.Use(conn); err == nil {
		t.Error("taken for an answer")
	}
	next(t, events)
	if _, err := conn.Write([]byte{0}); err == nil {
		t.Error("the connection is still open")
	}
}
