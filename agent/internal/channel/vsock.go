package channel

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/egress"
	"github.com/workfort/nexus/agent/internal/safe"
	"github.com/workfort/nexus/agent/internal/wire"
)

// hostCID is VMADDR_CID_HOST.
const hostCID = 2

// Vsock listens for control streams and keeps an egress stream dialled. It returns if there is no vsock.
func Vsock(s Server, client *egress.Client) error {
	fd, err := listenVsock()
	if err != nil {
		return err
	}
	safe.Go(func() { egress.Redial(client, dialVsock) })
	accept(fd, s.Control)
	return nil
}

// accept hands each control stream to serve. It never returns.
func accept(fd int, serve func(net.Conn)) {
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			// Out of descriptors or memory: the listener itself stays good.
			safe.Logf("cannot accept a control stream: %v", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		safe.Go(func() { serve(&fileConn{File: os.NewFile(uintptr(conn), "vsock")}) })
	}
}

func listenVsock() (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: wire.ControlPort})
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// dialVsock connects; the kernel itself gives up after 2 s.
func dialVsock() (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: hostCID, Port: wire.EgressPort})
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &fileConn{File: os.NewFile(uintptr(fd), "vsock")}, nil
}
