package fs

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Reading is a regular file that is being read.
type Reading struct {
	Entry Entry
	// Length is how many bytes there are to come; -1: to the end, wherever that is (a file of /proc).
	Length int64
	file   *os.File
}

// Open opens a part of a regular file. A file whose etag is another one by now is refused; length -1 is all there is.
func Open(path string, offset, length int64, want string) (*Reading, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	r, err := begin(f, offset, length, want)
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

func begin(f *os.File, offset, length int64, want string) (*Reading, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, unix.EISDIR
	default:
		return nil, errNotRegular
	}
	r := &Reading{Entry: entry(filepath.Base(f.Name()), &st, nil), file: f, Length: -1}
	if want != "" && want != r.Entry.Etag {
		return nil, errChanged
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	if st.Size > 0 {
		r.Length = max(0, st.Size-offset)
	}
	if length >= 0 && (r.Length < 0 || length < r.Length) {
		r.Length = length
	}
	return r, nil
}

// WriteTo sends the bytes: exactly Length of them where that is known, else it fails.
func (r *Reading) WriteTo(w io.Writer) (int64, error) {
	buf := make([]byte, 64<<10)
	var sent int64
	for r.Length < 0 || sent < r.Length {
		part := buf
		if r.Length >= 0 {
			part = buf[:min(int64(len(buf)), r.Length-sent)]
		}
		n, err := r.file.Read(part)
		if n > 0 {
			if _, werr := w.Write(part[:n]); werr != nil {
				return sent, &Broken{werr}
			}
			sent += int64(n)
		}
		if err == io.EOF {
			if r.Length > sent && r.Entry.SizeBytes > 0 {
				return sent, errShrunk
			}
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// Close lets go of the file.
func (r *Reading) Close() error { return r.file.Close() }

// Broken is a failure of the stream to or from the host, not of a file.
type Broken struct{ Err error }

func (b *Broken) Error() string { return b.Err.Error() }
func (b *Broken) Unwrap() error { return b.Err }
