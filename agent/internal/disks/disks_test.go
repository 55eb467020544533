package disks

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The size comes from a superblock that mke2fs itself wrote.
func TestExt4Size(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mke2fs, err = exec.LookPath("/usr/sbin/mke2fs"); err != nil {
			t.Skip("mke2fs is not installed")
		}
	}
	for _, c := range []struct {
		blockSize, size string
		want            [2]uint64
	}{
		{"1024", "20M", [2]uint64{20480, 1024}},
		{"4096", "64M", [2]uint64{16384, 4096}},
		{"4096", "40G", [2]uint64{10485760, 4096}},
	} {
		path := filepath.Join(t.TempDir(), "fs")
		// `-n` would write nothing; a lazy file system of 40 GiB is sparse.
		out, err := exec.Command(mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-b",
			c.blockSize, path, c.size).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		super := make([]byte, 1024)
		_, err = f.ReadAt(super, 1024)
		f.Close()
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		blocks, size, err := ext4Size(super)
		if err != nil || blocks != c.want[0] || size != c.want[1] {
			t.Errorf("%s: %d blocks of %d, %v", c.size, blocks, size, err)
		}
	}
}

func TestExt4SizeOfGarbage(t *testing.T) {
	if _, _, err := ext4Size(make([]byte, 1024)); err == nil {
		t.Error("zeros are taken for ext4")
	}
	garbage := []byte(strings.Repeat("\xff", 1024))
	garbage[0x38], garbage[0x39] = 0x53, 0xef
	if _, size, err := ext4Size(garbage); err == nil {
		t.Errorf("blocks of %d bytes", size)
	}
}

func TestParseMount(t *testing.T) {
	for value, want := range map[string]*Mount{
		"vdb:/data":     {Device: "vdb", Path: "/data"},
		"vdc:/srv/x:ro": {Device: "vdc", Path: "/srv/x", ReadOnly: true},
		"vdb":           nil,
		"vdb:data":      nil,
		"vdb:/data:rw":  nil,
		"sda:/data":     nil,
		"vd/../x:/data": nil,
		"":              nil,
	} {
		got, ok := ParseMount(value)
		if ok != (want != nil) || ok && got != *want {
			t.Errorf("%q: %+v %v", value, got, ok)
		}
	}
}

func TestMountinfo(t *testing.T) {
	text := `21 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 254:0 / / rw,relatime - ext4 /dev/vda rw
99 28 0:40 /part /mnt/a\040b\134c\011 rw shared:1 master:2 - tmpfs tmpfs rw
5 6 7:8 / /x rw -
broken
`
	want := []Mounted{{"0:20", "/", "/sys", "sysfs"}, {"254:0", "/", "/", "ext4"},
		{"0:40", "/part", "/mnt/a b\\c\t", "tmpfs"}, {"7:8", "/", "/x", ""}}
	if got := parse(text); !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	for in, out := range map[string]string{`\`: `\`, `a\04`: `a\04`} {
		if got := Unescape(in); got != out {
			t.Errorf("%q", got)
		}
	}
	if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(text), " / / ") {
		found := false
		for _, m := range All() {
			found = found || m.Point == "/"
		}
		if !found {
			t.Error("no root among this machine's own mounts")
		}
	}
}

func TestWhatIsNoDisk(t *testing.T) {
	for _, device := range []string{"", "null", "vd", "../dev/null", "vdz"} {
		if path, err := GrowMounted(device, 1); err == nil {
			t.Errorf("%q is mounted on %s", device, path)
		}
	}
	if got := Problems([]Mount{{Device: "vdz", Path: "/data"}}); len(got) != 1 || !strings.HasPrefix(got[0], "/dev/vdz is not mounted on /data: ") {
		t.Errorf("%q", got)
	}
	if got := Problems(nil); got != nil {
		t.Errorf("%q", got)
	}
}
