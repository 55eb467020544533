// Package account finds users in /etc/passwd and /etc/group and makes the environment of their login. The files belong
// to the guest's owner: what is read of them is bounded.
package account

import (
	"bufio"
	"errors"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"

	"github.com/workfort/nexus/agent/internal/files"
)

const (
	maxFile   = 4 << 20
	maxLine   = 64 << 10
	maxGroups = 1024 // of the 65536 the kernel takes
)

// ErrNoUser says that no such user exists.
var ErrNoUser = errors.New("no such user")

// User is an entry of /etc/passwd with its supplementary groups.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Home   string
	Shell  string
}

// Lookup finds a user by name or number below root ("" for the real files). A number without an entry is a user without
// a name, with the group of the same number and / as home.
func Lookup(root, who string) (User, error) {
	u := User{Home: "/", Shell: "/bin/sh"}
	found := false
	err := lines(root+"/etc/passwd", func(line string) bool {
		f := strings.Split(line, ":")
		if len(f) < 7 || (f[0] != who && f[2] != who) {
			return true
		}
		uid, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 {
			return true
		}
		if found && f[0] != who { // a name beats a number
			return true
		}
		found = true
		u.Name, u.UID, u.GID, u.Home = f[0], uid, gid, f[5]
		if f[6] != "" {
			u.Shell = f[6]
		}
		return f[0] != who
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return User{}, err
	}
	if !found {
		uid, ok := number(who)
		switch {
		case who == "root":
			u.Name, u.Home = "root", "/root"
		case ok && who == strconv.FormatUint(uint64(uid), 10):
			u.Name, u.UID, u.GID = who, uid, uid
			if uid == 0 {
				u.Name, u.Home = "root", "/root"
			}
		default:
			return User{}, ErrNoUser
		}
	}
	if u.Home == "" {
		u.Home = "/"
	}
	u.Groups = groups(root, u)
	return u, nil
}

func groups(root string, u User) []uint32 {
	list := []uint32{u.GID}
	_ = lines(root+"/etc/group", func(line string) bool {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			return true
		}
		gid, ok := number(f[2])
		if !ok || gid == u.GID {
			return true
		}
		for _, m := range strings.Split(f[3], ",") {
			if m == u.Name {
				list = append(list, gid)
				break
			}
		}
		return len(list) < maxGroups
	})
	return list
}

// number reads a user or group number; 4294967295 means "unchanged" to the kernel and is none.
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// Environ makes the environment of a command: that of a login, that of the image, then extra.
func Environ(root string, u User, extra map[string]string) []string {
	env := map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
		"LANG": "C.UTF-8",
	}
	if u.UID == 0 {
		env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	_ = lines(root+"/etc/environment", func(line string) bool {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		k, v, ok := strings.Cut(line, "=")
		if ok && k != "" && !strings.HasPrefix(k, "#") && len(env) < maxVariables {
			env[k] = unquote(v)
		}
		return true
	})
	for k, v := range ImageEnvironment(root) {
		env[k] = v
	}
	env["HOME"], env["USER"], env["LOGNAME"], env["SHELL"] = u.Home, u.Name, u.Name, u.Shell
	for k, v := range extra {
		env[k] = v
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return list
}

func unquote(v string) string {
	if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
		return v[1 : len(v)-1]
	}
	return v
}

// lines calls f for each line until f says false. A line longer than maxLine, or one with a NUL, is an error of the file.
func lines(path string, f func(string) bool) error {
	file, err := files.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	s := bufio.NewScanner(io.LimitReader(file, maxFile))
	s.Buffer(make([]byte, 0, 4096), maxLine)
	for s.Scan() {
		if strings.IndexByte(s.Text(), 0) < 0 && !f(s.Text()) {
			return nil
		}
	}
	return s.Err()
}
