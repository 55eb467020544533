package control

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/workfort/nexus/agent/internal/fs"
)

func (s *Server) fsRoutes() {
	s.mux.HandleFunc("GET /v1/fs/stat", cuttable(fsStat))
	s.mux.HandleFunc("GET /v1/fs/list", long(cuttable(fsList)))
	s.mux.HandleFunc("GET /v1/fs/read", long(cuttable(fsRead)))
	s.mux.HandleFunc("POST /v1/fs/write", long(fsWrite))
	s.mux.HandleFunc("GET /v1/fs/watch", long(cuttable(fsWatch)))
	s.mux.HandleFunc("GET /v1/fs/tree", long(cuttable(fsExport)))
	s.mux.HandleFunc("POST /v1/fs/tree", long(fsImport))
	s.mux.HandleFunc("POST /v1/fs/remove", long(fsRemove))
	s.mux.HandleFunc("POST /v1/fs/mkdir", fsMkdir)
	s.mux.HandleFunc("POST /v1/fs/rename", fsRename)
	s.mux.HandleFunc("POST /v1/fs/chmod", fsChmod)
}

// fsQuery reads the fields of a query and keeps the first that is not valid.
type fsQuery struct {
	url.Values
	err error
}

func (q *fsQuery) fail(text string) {
	if q.err == nil {
		q.err = errors.New(text)
	}
}

func (q *fsQuery) path() string {
	path := q.Get("path")
	if err := fs.CheckPath(path); err != nil {
		q.fail(err.Error())
	}
	return path
}

// number is the value of a field, or -1 if it is not there.
func (q *fsQuery) number(name string, bits int) int64 {
	text := q.Get(name)
	if text == "" {
		return -1
	}
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		q.fail(name + " must be a whole number")
	}
	return int64(n)
}

// time is a time in ms since the epoch, which may be before it.
func (q *fsQuery) time() *int64 {
	text := q.Get("modified_at_ms")
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 54)
	if err != nil {
		q.fail("modified_at_ms must be a whole number")
	}
	return &n
}

func (q *fsQuery) mode() *uint32 {
	mode, err := octal(q.Get("mode"))
	if err != nil {
		q.fail(err.Error())
	}
	return mode
}

func octal(text string) (*uint32, error) {
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || n > 0o7777 {
		return nil, errors.New("mode must be an octal number")
	}
	mode := uint32(n)
	return &mode, nil
}

// refuseFs answers why the guest's files did not allow it: 422 and the name of the errno.
func refuseFs(w http.ResponseWriter, err error) {
	code, detail := fs.CodeOf(err)
	refuse(w, 422, code, detail)
}

func fsStat(w http.ResponseWriter, r *http.Request) {
	q := &fsQuery{Values: r.URL.Query()}
	path := q.path()
	if q.err != nil {
		refuse(w, 400, "invalid", q.err.Error())
		return
	}
	e, err := fs.Stat(path, q.Get("follow") == "1")
	if err != nil {
		refuseFs(w, err)
		return
	}
	answer(w, 200, e)
}

// change is the body of the requests that change one file.
type change struct {
	Path      string `json:"path"`
	NewPath   string `json:"new_path"`
	Mode      string `json:"mode"`
	UID       *int   `json:"uid"`
	GID       *int   `json:"gid"`
	Recursive bool   `json:"recursive"`
	Parents   bool   `json:"parents"`
	Replace   bool   `json:"replace"`
	Modified  *int64 `json:"modified_at_ms"`

	bits *uint32
}

func (c *change) uid() int { return orNone(c.UID) }
func (c *change) gid() int { return orNone(c.GID) }

func orNone(n *int) int {
	if n == nil {
		return -1
	}
	return *n
}

// changes answers a request that changes one file.
func changes(w http.ResponseWriter, r *http.Request, deed func(c *change) error) {
	c := new(change)
	if !read(w, r, c) {
		return
	}
	bits, err := octal(c.Mode)
	c.bits = bits
	if err == nil {
		err = fs.CheckPath(c.Path)
	}
	if err == nil && c.NewPath != "" {
		err = fs.CheckPath(c.NewPath)
	}
	if err == nil && (c.uid() < -1 || c.gid() < -1) {
		err = errors.New("uid and gid are not negative")
	}
	if err != nil {
		refuse(w, 400, "invalid", err.Error())
		return
	}
	if err := deed(c); err != nil {
		refuseFs(w, err)
		return
	}
	w.WriteHeader(204)
}

func fsRemove(w http.ResponseWriter, r *http.Request) {
	changes(w, r, func(c *change) error { return fs.Remove(c.Path, c.Recursive) })
}

func fsMkdir(w http.ResponseWriter, r *http.Request) {
	changes(w, r, func(c *change) error {
		mode := uint32(0o755)
		if c.bits != nil {
			mode = *c.bits
		}
		return fs.Mkdir(c.Path, mode, c.Parents, c.uid(), c.gid())
	})
}

func fsRename(w http.ResponseWriter, r *http.Request) {
	changes(w, r, func(c *change) error { return fs.Rename(c.Path, c.NewPath, c.Replace) })
}

func fsChmod(w http.ResponseWriter, r *http.Request) {
	changes(w, r, func(c *change) error { return fs.Change(c.Path, c.bits, c.uid(), c.gid(), c.Modified) })
}
