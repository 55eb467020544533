// Package wire holds what crosses the channel between host and guest: limits, messages and the framing of
// exec. The text is docs/guest-protocol.md; the golden vectors are in test/vectors.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	// Generation of the protocol.
	Generation = 1
	// Version of the agent.
	Version = "0.1.0"

	// MaxSpec bounds the JSON that begins the body of POST /v1/exec.
	MaxSpec = 4 << 20
	// MaxFrame bounds the bytes of one output frame.
	MaxFrame = 64 << 10
	// FrameHead is the length of a frame's head: channel and length.
	FrameHead = 5
	// MaxJSON bounds every other JSON body.
	MaxJSON = 64 << 10

	// Streams that one connection may open, and how many of them may be exec, output and stdin.
	Streams      = 128
	LongStreams  = 112
	StreamWindow = 64 << 10
	// ConnWindow is Streams*StreamWindow: even if every stream stalls with a full window, none takes from another.
	ConnWindow = Streams * StreamWindow

	// ControlPort is the vsock port the guest listens on, EgressPort the one it dials on the host.
	ControlPort = 1024
	EgressPort  = 1025
)

// Channels of an exec's answer.
const (
	Stdout byte = 1
	Stderr byte = 2
	Gap    byte = 3
)

// Spec is what POST /v1/exec asks for.
type Spec struct {
	ID           string            `json:"id"`
	Argv         []string          `json:"argv"`
	Cwd          string            `json:"cwd,omitempty"`
	Env          map[string]string `json:"env,omitempty"`
	User         string            `json:"user,omitempty"`
	TimeoutMs    int64             `json:"timeout_ms,omitempty"`
	Stdin        string            `json:"stdin"`
	OnDisconnect string            `json:"on_disconnect"`
	// Digest of what was asked for: a request with a known ID and another digest is another command.
	Digest string `json:"digest,omitempty"`
	// Tty gives the command a terminal; then argv may be empty: the user's login shell.
	Tty *Size `json:"tty,omitempty"`
	// Session is a name that one running command with a terminal has at most.
	Session string `json:"session,omitempty"`
	// Tail: of a command that runs already the output begins at a line within its last so many bytes; 0: at its beginning.
	Tail int64 `json:"tail,omitempty"`
}

// Size of a terminal, in characters.
type Size struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// Valid says whether the kernel and a reasonable program can take it.
func (s Size) Valid() bool { return s.Cols >= 1 && s.Cols <= 65535 && s.Rows >= 1 && s.Rows <= 65535 }

// Facts are the body of the bell and the answer of GET /v1/facts.
type Facts struct {
	Generation   int    `json:"generation"`
	AgentVersion string `json:"agent_version"`
	AgentID      string `json:"agent_id"`
	BootID       string `json:"boot_id"`
	Kernel       string `json:"kernel"`
	OS           string `json:"os"`
	Hostname     string `json:"hostname"`
	Init         string `json:"init"`
	Arch         string `json:"arch"`
	// Problems are sentences of what the guest lacks, such as a disk that could not be mounted.
	Problems []string `json:"problems,omitempty"`
}

// Now is the answer of GET /v1/now.
type Now struct {
	Load                 [3]float64  `json:"load"`
	UptimeMs             int64       `json:"uptime_ms"`
	MemoryTotalBytes     int64       `json:"memory_total_bytes"`
	MemoryAvailableBytes int64       `json:"memory_available_bytes"`
	Disks                []Space     `json:"disks"`
	Addresses            []Address   `json:"addresses"`
	Ports                []Listening `json:"ports"`
}

// Space is that of a file system on a block device; what is free is free for everybody.
type Space struct {
	Path      string `json:"path"`
	Type      string `json:"type"`
	SizeBytes int64  `json:"size_bytes"`
	FreeBytes int64  `json:"free_bytes"`
}

// Address of an interface, with the length of its network.
type Address struct {
	Interface string `json:"interface"`
	Address   string `json:"address"`
}

// Listening is a TCP port that somebody listens on.
type Listening struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// Fault is the body of an error answer.
type Fault struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Power is the body of POST /v1/power.
type Power struct {
	Kind    string `json:"kind"`
	GraceMs int64  `json:"grace_ms"`
}

// Ending is the body of POST /v1/ending.
type Ending struct {
	Kind string `json:"kind"`
	By   string `json:"by"`
}

// Grow is the body of POST /v1/disks/grow.
type Grow struct {
	Device    string `json:"device"`
	SizeBytes int64  `json:"size_bytes"`
}

// Grown is its answer: where the file system is mounted.
type Grown struct {
	Path string `json:"path"`
}

// Settle is the body of POST /v1/settle. Entropy is base64 in JSON.
type Settle struct {
	ClockMs  int64  `json:"clock_ms,omitempty"`
	Entropy  []byte `json:"entropy,omitempty"`
	Hostname string `json:"hostname,omitempty"`
}

// Agent is the answer of GET /v1/agent: which program it is.
type Agent struct {
	Version string `json:"version"`
	Sha256  string `json:"sha256"`
}

// MaxAgent bounds the program that POST /v1/update brings, in bytes.
const MaxAgent = 32 << 20

// Clock is the answer of /v1/clock: the time of the guest, in microseconds since 1970.
type Clock struct {
	ClockUs int64 `json:"clock_us"`
}

// Step is the body of POST /v1/clock: the clock is put forward by so much, or back.
type Step struct {
	ByUs int64 `json:"by_us"`
}

// Valid says whether it stays far from what a clock of nanoseconds cannot hold.
func (s Step) Valid() bool { return s.ByUs >= -maxStepUs && s.ByUs <= maxStepUs }

// maxStepUs is about 142 years.
const maxStepUs = 1 << 52

// maxTimeoutMs is about 31 years: it cannot overflow a time.Duration.
const maxTimeoutMs = 1_000_000_000_000

// ReadSpec reads the preamble of POST /v1/exec and leaves r at the first byte of the standard input.
func ReadSpec(r io.Reader) (Spec, error) {
	var spec Spec
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return spec, fmt.Errorf("the length of the spec is missing: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxSpec {
		return spec, fmt.Errorf("the spec has %d bytes; at most %d are allowed", n, MaxSpec)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return spec, fmt.Errorf("the spec is cut off: %w", err)
	}
	if err := json.Unmarshal(body, &spec); err != nil {
		return spec, fmt.Errorf("the spec is not valid JSON: %w", err)
	}
	return spec, spec.check()
}

func (s *Spec) check() error {
	if s.Stdin == "" {
		s.Stdin = "none"
	}
	if s.OnDisconnect == "" {
		s.OnDisconnect = "keep"
	}
	switch {
	case !ValidID(s.ID):
		return errors.New("id must be 1 to 64 letters, digits, _ or -")
	case s.Tty == nil && len(s.Argv) == 0 || len(s.Argv) > 0 && s.Argv[0] == "":
		return errors.New("argv has no program")
	case s.Tty != nil && !s.Tty.Valid():
		return errors.New("cols and rows must be 1 to 65535")
	case s.Session != "" && (s.Tty == nil || !ValidID(s.Session)):
		return errors.New("session must be 1 to 64 letters, digits, _ or -, of a command with a terminal")
	case s.Digest != "" && !ValidID(s.Digest):
		return errors.New("digest must be 1 to 64 letters, digits, _ or -")
	case s.Tail < 0:
		return errors.New("tail is out of range")
	case s.TimeoutMs < 0 || s.TimeoutMs > maxTimeoutMs:
		return errors.New("timeout_ms is out of range")
	case s.Stdin != "none" && s.Stdin != "open" && s.Stdin != "later":
		return errors.New("stdin must be none, open or later")
	case s.OnDisconnect != "keep" && s.OnDisconnect != "kill":
		return errors.New("on_disconnect must be keep or kill")
	case len(s.User) > 256 || hasNul(s.User):
		return errors.New("user is not valid")
	case len(s.Cwd) > 4096 || hasNul(s.Cwd):
		return errors.New("cwd is not valid")
	}
	for _, a := range s.Argv {
		if hasNul(a) {
			return errors.New("argv holds a NUL character")
		}
	}
	for k, v := range s.Env {
		if k == "" || strings.Contains(k, "=") || hasNul(k) || hasNul(v) {
			return fmt.Errorf("env holds a name or value that is not valid: %.64q", k)
		}
	}
	return nil
}

func hasNul(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// ValidID says whether id can name an exec.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// PutHead writes a frame's head into b, which has at least FrameHead bytes.
func PutHead(b []byte, channel byte, n int) {
	b[0] = channel
	binary.BigEndian.PutUint32(b[1:], uint32(n))
}

// AppendGap appends the frame that says how many bytes of a channel were dropped.
func AppendGap(b []byte, channel byte, dropped uint64) []byte {
	b = append(b, Gap, 0, 0, 0, 9, channel)
	return binary.BigEndian.AppendUint64(b, dropped)
}
