// Package probe asks the host's kernel what only a program with its own system calls and instructions can ask.
package probe

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"time"
)

// KVM is the answer of `nexus-probe kvm`.
type KVM struct {
	Usable bool   `json:"usable"`
	Reason string `json:"reason"` // ok, no-device, no-permission, no-api, guest-does-not-run
	Detail string `json:"detail"`
}

func verdict(reason, detail string) KVM { return KVM{reason == "ok", reason, detail} }

// kvmLimit leaves room in the second within which the probe answers.
const kvmLimit = 800 * time.Millisecond

// CheckKVM runs the guest in a child: a KVM that hangs must not hang the probe.
func CheckKVM() KVM {
	self, err := os.Executable()
	if err != nil {
		return verdict("guest-does-not-run", "the probe cannot find itself: "+err.Error())
	}
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
	case <-time.After(kvmLimit):
		_ = child.Process.Kill()
		return verdict("guest-does-not-run", "supervisor code of a guest is not run by hardware: what takes milliseconds did not end in "+kvmLimit.String())
	}
	var answer KVM
	if err != nil || json.Unmarshal(out.Bytes(), &answer) != nil {
		return verdict("guest-does-not-run", "the child that runs the guest died")
	}
	return answer
}
