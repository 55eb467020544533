package control

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// dialFor bounds the wait for a port of the guest's own; only one whose queue is full takes any time.
const dialFor = 10 * time.Second

// port joins the stream with a TCP connection to a port of the guest's loopback. Both directions are framed (a length, then so many
// bytes; the length 0 is the sender's end): HTTP/2 as we have it can neither end an answer while its request goes on, nor tell an
// end of the request from a client that gave it up.
func (s *Server) port(w http.ResponseWriter, r *http.Request) {
	hosts, port, err := target(r)
	if err != nil {
		refuse(w, 400, "invalid", err.Error())
		return
	}
	conn, err := dial(r.Context(), hosts, port)
	if err != nil {
		refuse(w, 422, dialCode(err), "Cannot reach port "+port+" of the guest: "+plainReason(err)+".")
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(r.Context(), func() { breakOff(conn) })
	defer stop()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(200)
	flush := http.NewResponseController(w).Flush
	_ = flush()
	up := make(chan error, 1)
	safe.Go(func() { up <- fromHost(conn, r.Body) })
	err = toHost(conn, w, flush)
	if err == nil {
		err = <-up
	}
	if err != nil {
		breakOff(conn)
		panic(http.ErrAbortHandler)
	}
}

// breakOff ends both directions with a reset, which nobody takes for an end.
func breakOff(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

func target(r *http.Request) (hosts []string, port string, err error) {
	query := r.URL.Query()
	n, err := strconv.ParseUint(query.Get("port"), 10, 16)
	if err != nil || n == 0 {
		return nil, "", errors.New("port must be 1 to 65535")
	}
	switch host := query.Get("host"); host {
	case "":
		hosts = []string{"127.0.0.1", "::1"}
	case "127.0.0.1", "::1":
		hosts = []string{host}
	default:
		return nil, "", errors.New("host must be 127.0.0.1 or ::1")
	}
	return hosts, strconv.FormatUint(n, 10), nil
}

// dial tries the hosts in their order and gives the first one's error.
func dial(ctx context.Context, hosts []string, port string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	var first error
	for _, host := range hosts {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func dialCode(err error) string {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused"
	}
	return "unreachable"
}

func plainReason(err error) string {
	var no syscall.Errno
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "it does not answer"
	case errors.As(err, &no):
		return no.Error()
	}
	return "it cannot be dialled"
}

var portBuffers = sync.Pool{New: func() any { return new([4 + wire.MaxFrame]byte) }}

// fromHost passes on what the request's body says. The error is the body's; where the guest's side takes no more, the other direction
// tells how it goes on.
func fromHost(conn *net.TCPConn, body io.Reader) (err error) {
	buf := portBuffers.Get().(*[4 + wire.MaxFrame]byte)
	defer portBuffers.Put(buf)
	defer func() {
		if err != nil {
			breakOff(conn)
		}
	}()
	for {
		if _, err := io.ReadFull(body, buf[:4]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(buf[:])
		if n == 0 {
			_ = conn.CloseWrite()
			return nil
		}
		if n > wire.MaxFrame {
			return errors.New("a frame is too long")
		}
		if _, err := io.ReadFull(body, buf[:n]); err != nil {
			return err
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return nil
		}
	}
}

func toHost(conn *net.TCPConn, w io.Writer, flush func() error) error {
	buf := portBuffers.Get().(*[4 + wire.MaxFrame]byte)
	defer portBuffers.Put(buf)
	for {
		n, err := conn.Read(buf[4:])
		if n > 0 || err == io.EOF {
			binary.BigEndian.PutUint32(buf[:], uint32(n))
			if _, werr := w.Write(buf[:4+n]); werr != nil {
				return werr
			}
			if werr := flush(); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
