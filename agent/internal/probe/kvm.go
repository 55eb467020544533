// Package probe asks the host's kernel what only a program with its own system calls and instructions can ask.
package probe

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"sync/atomic"
	"time"
)

// KVM is the answer of `nexus-probe kvm`.
type KVM struct {
	Usable bool   `json:"usable"`
	Reason string `json:"reason"` // ok, no-device, no-permission, no-api, guest-does-not-run
	Detail string `json:"detail"`
}

func verdict(reason, detail string) KVM { return KVM{reason == "ok", reason, detail} }

const (
	// kvmLimit leaves room in the second within which the probe answers.
	kvmLimit = 800 * time.Millisecond
	// kvmMost bounds what a busy machine may need.
	kvmMost = 10 * time.Second
	// slower is how many times as long as this processor itself a guest may take: with hardware it is once, with an emulated
	// AMD-V some ten times, without hardware a thousand times.
	slower = 200
	rounds = 500_000 // as in the guest
	parts  = 5
)

var spun atomic.Uint32

// patience is how long the guest may take here: where the processor itself is slow, a guest is too. The best of a few short
// measurements is that of a moment in which nobody else had the processor.
func patience() time.Duration {
	best := kvmMost
	for range parts {
		begun := time.Now()
		for range rounds / parts {
			spun.Add(1)
		}
		best = min(best, time.Since(begun))
	}
	return min(max(kvmLimit, slower*parts*best), kvmMost)
}

// CheckKVM runs the guest in a child: a KVM that hangs must not hang the probe.
func CheckKVM() KVM {
	self, err := os.Executable()
	if err != nil {
		return verdict("guest-does-not-run", "the probe cannot find itself: "+err.Error())
	}
	limit := patience()
	var out bytes.Buffer
	child := exec.Command(self, "kvm-run")
	child.Stdout = &out
	if err := child.Start(); err != nil {
		return verdict("guest-does-not-run", "the probe cannot start its child: "+err.Error())
	}
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	select {
	case err = <-done:
	case <-time.After(limit):
		_ = child.Process.Kill()
		return verdict("guest-does-not-run", "supervisor code of a guest is not run by hardware: what takes milliseconds did not end in "+limit.Round(time.Millisecond).String())
	}
	var answer KVM
	if err != nil || json.Unmarshal(out.Bytes(), &answer) != nil {
		return verdict("guest-does-not-run", "the child that runs the guest died")
	}
	return answer
}
