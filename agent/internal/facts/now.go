package facts

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/workfort/nexus/agent/internal/disks"
	"github.com/workfort/nexus/agent/internal/files"
	"github.com/workfort/nexus/agent/internal/wire"
)

// Of each list so many are told.
const most = 64

// What is read of a list of sockets: about seven thousand of them.
const socketBytes = 1 << 20

// Now looks at what changes all the time.
func Now() wire.Now {
	now := wire.Now{Disks: mounted(), Addresses: addresses(), Ports: listening()}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		for i, n := range s.Loads {
			now.Load[i] = float64(n) / (1 << 16) // sysinfo(2)
		}
		now.UptimeMs = int64(s.Uptime) * 1000
	}
	memory := files.Small("/proc/meminfo")
	now.MemoryTotalBytes = kib(memory, "MemTotal:")
	now.MemoryAvailableBytes = kib(memory, "MemAvailable:")
	return now
}

// Available is how many bytes of memory there are for programs; where the kernel does not say, more than there can be.
func Available() uint64 {
	if n := kib(files.Small("/proc/meminfo"), "MemAvailable:"); n > 0 {
		return uint64(n)
	}
	return math.MaxUint64
}

// kib finds a line of /proc/meminfo and gives its bytes.
func kib(text, name string) int64 {
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n * 1024
		}
	}
	return 0
}

// mounted are the file systems of block devices, each once. Others have no size of their own, and some do not answer.
func mounted() []wire.Space {
	found := []wire.Space{}
	seen := map[string]bool{}
	for _, m := range disks.All() {
		if strings.HasPrefix(m.Device, "0:") || seen[m.Device] || len(found) == most {
			continue
		}
		var s unix.Statfs_t
		if unix.Statfs(m.Point, &s) != nil {
			continue
		}
		seen[m.Device] = true
		block := int64(s.Bsize)
		found = append(found, wire.Space{
			Path: Clean(m.Point), Type: Clean(m.Type), SizeBytes: int64(s.Blocks) * block, FreeBytes: int64(s.Bavail) * block,
		})
	}
	return found
}

// addresses are those of the interfaces, without the loopback's.
func addresses() []wire.Address {
	found := []wire.Address{}
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		all, _ := i.Addrs()
		for _, a := range all {
			if len(found) < most {
				found = append(found, wire.Address{Interface: Clean(i.Name), Address: a.String()})
			}
		}
	}
	return found
}

// listening are the TCP ports on which somebody listens.
func listening() []wire.Listening {
	found := []wire.Listening{}
	seen := map[wire.Listening]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		for _, l := range parseListening(io.LimitReader(f, socketBytes)) {
			if !seen[l] && len(found) < most {
				seen[l] = true
				found = append(found, l)
			}
		}
		f.Close()
	}
	return found
}

// parseListening reads the table of /proc/net/tcp (proc(5)): the local address is the second word, the state (0A: listen) the fourth.
func parseListening(r io.Reader) []wire.Listening {
	var found []wire.Listening
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		address, ok := address(host)
		if err == nil && ok {
			found = append(found, wire.Listening{Address: address, Port: int(n)})
		}
	}
	return found
}

// address reads words of 32 bits in the order of the processor, which is little endian on all of ours.
func address(text string) (string, bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b)%4 != 0 {
		return "", false
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.LittleEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap().String(), ok
}
