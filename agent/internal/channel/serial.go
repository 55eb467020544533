// Package channel finds and opens the byte streams to the host.
package channel

import (
	"errors"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/safe"
)

// Server takes over each stream and closes it.
type Server struct {
	Control func(net.Conn)
	Egress  func(net.Conn)
	Ports   *Ports
}

// Ports are those that were served, by name, with their devices. The zero value is empty.
type Ports struct {
	mu     sync.Mutex
	served map[string]string
}

// NewPorts are ports that an earlier program of this process has served.
func NewPorts(served map[string]string) *Ports {
	p := &Ports{served: map[string]string{}}
	maps.Copy(p.served, served)
	return p
}

// Served names them. From then on no further port is served: the next program of this process does it, unless resume is called.
func (p *Ports) Served() (served map[string]string, resume func()) {
	p.mu.Lock()
	return maps.Clone(p.served), p.mu.Unlock
}

const (
	portsDir = "/sys/class/virtio-ports"
	// nodeWait is how long a port's device node may come after its uevent: a device manager may have to make it.
	nodeWait = 2 * time.Second
)

// serial serves virtio-serial ports.
//
// INVARIANTS
//   - A port is opened once: its name stays in `served` until the kernel has removed the port, whatever program this process runs.
//   - When a stream is over its descriptor is closed: an open one would hold the port's unplug.
type serial struct{ Server }

// Serial serves every port that is there and every one that comes. It returns if uevents cannot be had.
func Serial(s Server) error {
	p := &serial{s}
	fd, err := uevents()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p.scan()
	buf := make([]byte, 16<<10)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // events were lost
			p.scan()
		case err != nil:
			return err
		case fromKernel(from) && strings.Contains(string(buf[:n]), "SUBSYSTEM=virtio-ports\x00"):
			// The name comes after the port, with a "change"; what the event says matters less than what is there now.
			p.scan()
		}
	}
}

func uevents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	// Group 1 is the kernel's own; udev repeats events on group 2.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func fromKernel(from unix.Sockaddr) bool {
	nl, ok := from.(*unix.SockaddrNetlink)
	return ok && nl.Pid == 0
}

// scan serves the ports that have a name of ours and were not served yet.
func (p *serial) scan() {
	entries, err := os.ReadDir(portsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		safe.Logf("cannot list ports: %v", err)
		return
	}
	found := map[string]string{}
	for _, e := range entries {
		if name := strings.TrimSpace(files.Small(portsDir + "/" + e.Name() + "/name")); name != "" {
			found[name] = e.Name()
		}
	}
	p.Ports.mu.Lock()
	defer p.Ports.mu.Unlock()
	served := p.Ports.served
	for name, dev := range served {
		if found[name] != dev {
			delete(served, name)
		}
	}
	for name, dev := range found {
		serve := p.handler(name)
		if _, known := served[name]; known || serve == nil {
			continue
		}
		served[name] = dev
		safe.Go(func() {
			conn, err := openPort(dev)
			if err != nil {
				safe.Logf("cannot open port %s: %v", name, err)
				return
			}
			defer conn.Close()
			serve(conn)
		})
	}
}

func (p *serial) handler(name string) func(net.Conn) {
	switch {
	case strings.HasPrefix(name, "nexus.control."):
		return p.Control
	case strings.HasPrefix(name, "nexus.egress."):
		return p.Egress
	}
	return nil
}

func openPort(dev string) (net.Conn, error) {
	deadline := time.Now().Add(nodeWait)
	for {
		fd, err := unix.Open("/dev/"+dev, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == nil {
			return &fileConn{File: os.NewFile(uintptr(fd), dev)}, nil
		}
		_, gone := os.Stat(portsDir + "/" + dev)
		if (err != unix.ENOENT && err != unix.ENXIO && err != unix.EINTR) || gone != nil || time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// fileConn makes a connection of a descriptor that the runtime polls.
type fileConn struct {
	*os.File
	once sync.Once
	err  error
}

func (c *fileConn) Close() error {
	c.once.Do(func() { c.err = c.File.Close() })
	return c.err
}

func (c *fileConn) LocalAddr() net.Addr  { return addr("guest") }
func (c *fileConn) RemoteAddr() net.Addr { return addr("host") }

type addr string

func (addr) Network() string  { return "nexus" }
func (a addr) String() string { return string(a) }
