package fs

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An archive is written by hand: archive/tar writes no sparse files. The format is POSIX pax with GNU's sparse files 1.0:
// https://www.gnu.org/software/tar/manual/html_node/Standard.html, …/PAX-1.html

const block = 512

// member is one file of an archive.
type member struct {
	name, link string
	kind       byte
	st         *unix.Stat_t
	xattrs     map[string]string
	// data is where its content is, if some of it is a hole.
	data []extent
}

type extent struct{ at, length int64 }

// head is all that comes before the content: a pax header, the ustar header and for a sparse file its map. It gives the length of the
// content, too.
func (m *member) head() ([]byte, int64) {
	records := map[string]string{"mtime": fmt.Sprintf("%d.%09d", m.st.Mtim.Sec, m.st.Mtim.Nsec)}
	size, index := int64(0), []byte(nil)
	if m.kind == '0' {
		size = m.st.Size
	}
	content, short := size, m.name
	if m.data != nil {
		index, content = sparseMap(m.data)
		size = int64(len(index)) + content
		records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
		records["GNU.sparse.name"], records["GNU.sparse.realsize"] = m.name, strconv.FormatInt(m.st.Size, 10)
		short = path.Join("GNUSparseFile.0", path.Base(m.name))
	} else if !plain(m.name, 100) {
		records["path"] = m.name
	}
	if !plain(m.link, 100) {
		records["linkpath"] = m.link
	}
	for key, n := range map[string]int64{"size": size, "uid": int64(m.st.Uid), "gid": int64(m.st.Gid)} {
		if n > 1<<21-1 && (key != "size" || n > 1<<33-1) {
			records[key] = strconv.FormatInt(n, 10)
		}
	}
	for name, value := range m.xattrs {
		if !strings.Contains(name, "=") { // there is no way to write that
			records["SCHILY.xattr."+name] = value
		}
	}
	var out bytes.Buffer
	pax := paxRecords(records)
	out.Write(ustar("PaxHeaders/"+cut(path.Base(m.name), 80), "", 'x', int64(len(pax)), &unix.Stat_t{Mode: 0o644}))
	out.Write(padded(pax))
	out.Write(ustar(cut(short, 100), cut(m.link, 100), m.kind, size, m.st))
	out.Write(index)
	return out.Bytes(), content
}

// plain is true for what an old header takes as it is. A name that is not UTF-8 must go there: pax has none.
func plain(s string, most int) bool {
	if len(s) > most {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return strings.ToValidUTF8(s, "") != s
		}
	}
	return true
}

func cut(s string, most int) string { return s[:min(len(s), most)] }

// sparseMap is the map that comes before the content of a sparse file, and the length of the content.
func sparseMap(data []extent) ([]byte, int64) {
	var b bytes.Buffer
	var content int64
	fmt.Fprintf(&b, "%d\n", len(data))
	for _, e := range data {
		fmt.Fprintf(&b, "%d\n%d\n", e.at, e.length)
		content += e.length
	}
	return padded(b.Bytes()), content
}

// paxRecords are "length key=value\n", the length of all of it in it.
func paxRecords(records map[string]string) []byte {
	keys := make([]string, 0, len(records))
	for key := range records {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	var b bytes.Buffer
	for _, key := range keys {
		rest := " " + key + "=" + records[key] + "\n"
		length := len(rest)
		for n := len(strconv.Itoa(length)) + len(rest); n != length; n = len(strconv.Itoa(length)) + len(rest) {
			length = n
		}
		b.WriteString(strconv.Itoa(length) + rest)
	}
	return b.Bytes()
}

func padded(b []byte) []byte {
	if over := len(b) % block; over != 0 {
		b = append(b, make([]byte, block-over)...)
	}
	return b
}

func ustar(name, link string, kind byte, size int64, st *unix.Stat_t) []byte {
	b := make([]byte, block)
	number := func(from, to int, n int64) {
		if width := to - from - 1; n < 0 || n >= 1<<(3*width) {
			n = 0 // pax has it
		}
		copy(b[from:to], fmt.Sprintf("%0*o", to-from-1, n))
	}
	copy(b, name)
	number(100, 108, int64(st.Mode&0o7777))
	number(108, 116, int64(st.Uid))
	number(116, 124, int64(st.Gid))
	number(124, 136, size)
	number(136, 148, st.Mtim.Sec)
	b[156] = kind
	copy(b[157:257], link)
	copy(b[257:], "ustar\x0000")
	if kind == '3' || kind == '4' {
		number(329, 337, int64(unix.Major(st.Rdev)))
		number(337, 345, int64(unix.Minor(st.Rdev)))
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// end is what ends an archive.
func end(w io.Writer) error {
	_, err := w.Write(make([]byte, 2*block))
	return err
}
