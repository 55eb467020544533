package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/workfort/nexus/agent/internal/wire"
)

// behind serves one connection on a port of the loopback.
func behind(t *testing.T, network, host string, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen(network, net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// unframed reads the answer up to its end mark; more tells whether anything comes after it.
func unframed(t *testing.T, res *http.Response) (data []byte, ended bool, err error) {
	t.Helper()
	head := make([]byte, 4)
	for {
		if _, err := io.ReadFull(res.Body, head); err != nil {
			return data, false, err
		}
		n := binary.BigEndian.Uint32(head)
		if n == 0 {
			return data, true, nil
		}
		if n > wire.MaxFrame {
			t.Fatalf("a frame of %d bytes", n)
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(res.Body, p); err != nil {
			return data, false, err
		}
		data = append(data, p...)
	}
}

func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// toPort is what a host sends: the data, in frames, and the end.
func toPort(data []byte) io.Reader {
	var b bytes.Buffer
	for len(data) > 0 {
		n := min(len(data), wire.MaxFrame)
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
		b.Write(data[:n])
		data = data[n:]
	}
	b.Write([]byte{0, 0, 0, 0})
	return &b
}

func (g *guest) port(query string, body io.Reader) *http.Response {
	g.Helper()
	res, err := g.begin(context.Background(), "POST", "/v1/port?"+query, body)
	if err != nil {
		g.Fatal(err)
	}
	return res
}

func TestPort(t *testing.T) {
	g := newGuest(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	four, six := behind(t, "tcp4", "127.0.0.1", echo), ""
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		six = behind(t, "tcp6", "::1", echo)
	}
	for _, query := range []string{"port=" + four, "host=127.0.0.1&port=" + four, "port=" + six, "host=::1&port=" + six} {
		if strings.HasSuffix(query, "=") {
			continue
		}
		res := g.port(query, toPort(big))
		if got, ended, err := unframed(t, res); !ended || !bytes.Equal(got, big) {
			t.Errorf("%s: %d bytes, %v, %v", query, len(got), ended, err)
		}
		if rest, err := io.ReadAll(res.Body); len(rest) > 0 || err != nil {
			t.Errorf("%s: %d bytes after the end, %v", query, len(rest), err)
		}
	}
}

// Either side ends its direction while the other goes on.
func TestPortHalfClosed(t *testing.T) {
	g := newGuest(t)
	first := behind(t, "tcp4", "127.0.0.1", func(c *net.TCPConn) { // the guest's side ends first
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
	r, w := io.Pipe()
	res := g.port("port="+first, r)
	if got, ended, err := unframed(t, res); string(got) != "bye" || !ended {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := io.Copy(w, toPort(make([]byte, 100_000))); err != nil {
		t.Error(err)
	}
	w.Close()
	if rest, err := io.ReadAll(res.Body); len(rest) > 0 || err != nil {
		t.Errorf("%d, %v", len(rest), err)
	}
	counts := behind(t, "tcp4", "127.0.0.1", func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		_, _ = io.WriteString(c, strconv.FormatInt(n, 10))
	})
	if got, ended, err := unframed(t, g.port("port="+counts, toPort([]byte("12345")))); string(got) != "5" || !ended {
		t.Errorf("%q, %v", got, err)
	}
}

func TestPortRefused(t *testing.T) {
	g := newGuest(t)
	for query, want := range map[string]int{"": 400, "port=0": 400, "port=65536": 400, "port=x": 400, "port=80&host=10.0.0.1": 400,
		"port=80&host=localhost": 400, "port=-1": 400} {
		if r := g.ask("POST", "/v1/port?"+query, nil); r.status != want {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	l, _ := net.Listen("tcp4", "127.0.0.1:0")
	free := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	if r := g.ask("POST", "/v1/port?port="+free, nil); r.status != 422 || !strings.Contains(string(r.body), `"refused"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// A reset on one side is one on the other; a connection is gone with its stream.
func TestPortBroken(t *testing.T) {
	g := newGuest(t)
	reset := behind(t, "tcp4", "127.0.0.1", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	r, w := io.Pipe()
	res := g.port("port="+reset, r)
	_, _ = w.Write([]byte{0, 0, 0, 1, 'x'})
	if got, ended, err := unframed(t, res); ended || err == nil || err == io.EOF {
		t.Errorf("%q, %v, %v", got, ended, err)
	}
	w.Close()
	gone := make(chan error, 3)
	waits := behind(t, "tcp4", "127.0.0.1", func(c *net.TCPConn) {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		_, err := c.Read(make([]byte, 1))
		gone <- err
	})
	r, w = io.Pipe()
	g.port("port="+waits, r).Body.Close()
	g.port("port="+waits, strings.NewReader(""))                 // an end of the request that is none of the connection
	g.port("port="+waits, strings.NewReader("\xff\xff\xff\xff")) // no frame
	for range 3 {
		if err := <-gone; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("its connection went on, or ended well: %v", err)
		}
	}
	w.Close()
}

// A stalled reader holds its own connection alone.
func TestPortStalled(t *testing.T) {
	g := newGuest(t)
	flood := behind(t, "tcp4", "127.0.0.1", func(c *net.TCPConn) { _, _ = io.Copy(c, zeros{}) })
	for range 20 {
		g.port("port="+flood, nil)
	}
	if got, ended, _ := unframed(t, g.port("port="+behind(t, "tcp4", "127.0.0.1", echo), toPort([]byte("ok")))); string(got) != "ok" || !ended {
		t.Errorf("%q", got)
	}
	if r := g.run(nil, "true"); r.code != "0" {
		t.Errorf("%+v", r)
	}
}

// What the agent sends is what the golden vectors say of it: data in one frame, and the end.
func TestPortGolden(t *testing.T) {
	g := newGuest(t)
	four := behind(t, "tcp4", "127.0.0.1", echo)
	res := g.port("port="+four, toPort([]byte{1}))
	body, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(body, []byte{0, 0, 0, 1, 1, 0, 0, 0, 0}) {
		t.Errorf("%x, %v", body, err)
	}
}
