package facts

import (
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/workfort/nexus/agent/internal/wire"
)

func TestListening(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0BB9 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000
   3: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000
   4: 0100:0050 0:0 0A
   5: XX00007F:0050 0:0 0A
   6: 0100007F:FFFFF 0:0 0A
   7:`
	want := []wire.Listening{{Address: "127.0.0.1", Port: 3000}, {Address: "::1", Port: 22}, {Address: "127.0.0.1", Port: 80}}
	if got := parseListening(strings.NewReader(table)); !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v", got)
	}
}

func TestNow(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	now := Now()
	if now.UptimeMs <= 0 || now.MemoryTotalBytes < 1<<20 || now.MemoryAvailableBytes <= 0 || now.MemoryAvailableBytes > now.MemoryTotalBytes {
		t.Fatalf("%+v", now)
	}
	if len(listening()) == most {
		t.Skip("too many ports are open here")
	}
	want := wire.Listening{Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	for _, p := range now.Ports {
		if p == want {
			return
		}
	}
	t.Fatalf("%v is not in %v", want, now.Ports)
}
