package channel

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/wire"
)

// local is VMADDR_CID_LOCAL: the machine itself, where its kernel has vsock_loopback.
const local = 1

func connect(t *testing.T) net.Conn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: local, Port: wire.ControlPort})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return &fileConn{File: os.NewFile(uintptr(fd), "vsock")}
}

// Control streams over the loopback of vsock: bytes both ways, an end that is seen, a close that wakes a reader.
func TestVsock(t *testing.T) {
	served := make(chan net.Conn, 2)
	if _, err := os.Stat("/sys/module/vsock_loopback"); err != nil {
		t.Skip("this kernel has no vsock_loopback: ", err)
	}
	fd, err := listenVsock()
	if err != nil {
		t.Fatal(err)
	}
	go accept(fd, func(c net.Conn) { served <- c })
	host := connect(t)
	guest := <-served
	want := make([]byte, 1<<20)
	go func() { _, _ = host.Write(want) }()
	if n, err := io.ReadFull(guest, make([]byte, len(want))); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	if _, err := guest.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 4)
	if _, err := io.ReadFull(host, back); err != nil || string(back) != "back" {
		t.Fatal(back, err)
	}
	host.Close()
	if n, err := guest.Read(back); err == nil {
		t.Errorf("%d bytes after the end", n)
	}
	guest.Close()

	second := connect(t)
	guest = <-served
	over := make(chan error, 1)
	go func() {
		_, err := guest.Read(make([]byte, 1))
		over <- err
	}()
	time.Sleep(20 * time.Millisecond)
	guest.Close()
	select {
	case err := <-over:
		if err == nil {
			t.Error("a read of a closed stream gave bytes")
		}
	case <-time.After(10 * time.Second):
		t.Error("close does not wake the reader")
	}
	second.Close()
}

func TestServeRefusesAnUnknownTransport(t *testing.T) {
	if err := Serve("pigeon", Server{}, nil); err == nil {
		t.Error("taken")
	}
}
