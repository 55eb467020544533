package probe

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// CheckKVM runs its own program again; here that is the test's.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "kvm-run" {
		_ = json.NewEncoder(os.Stdout).Encode(RunGuest())
		return
	}
	os.Exit(m.Run())
}

func TestKVMAnswersInTime(t *testing.T) {
	done := make(chan KVM, 1)
	go func() { done <- CheckKVM() }()
	var v KVM
	select {
	case v = <-done:
	case <-time.After(20 * time.Second): // the promise is 1 s; a busy machine is late
		t.Fatal("no answer")
	}
	t.Logf("%+v", v)
	if v.Usable != (v.Reason == "ok") || v.Detail == "" {
		t.Errorf("%+v", v)
	}
	_, err := os.Stat("/dev/kvm")
	switch v.Reason {
	case "ok", "no-permission", "guest-does-not-run":
		if err != nil && runtime.GOARCH == "amd64" {
			t.Errorf("%+v, and there is no /dev/kvm", v)
		}
	case "no-device", "no-api":
	default:
		t.Errorf("%+v", v)
	}
}

// A machine that has nothing else to do takes no longer than the promise; a slow one gets more time, never without bound.
func TestPatience(t *testing.T) {
	if p := patience(); p < kvmLimit || p > kvmMost {
		t.Error(p)
	}
}

func TestTSC(t *testing.T) {
	a, b := MeasureTSC(), MeasureTSC()
	if runtime.GOARCH != "amd64" {
		if a.KHz != nil || a.Detail == "" {
			t.Errorf("%+v", a)
		}
		return
	}
	if a.KHz == nil || b.KHz == nil {
		t.Fatalf("%+v %+v", a, b)
	}
	if diff := float64(*a.KHz)/float64(*b.KHz) - 1; diff > 0.0005 || diff < -0.0005 {
		t.Errorf("%d and %d kHz", *a.KHz, *b.KHz)
	}
}

func TestExtents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	found := ReadExtents([]string{path, "/no/such"})
	if len(found) != 2 || found[1] != nil {
		t.Errorf("%v", found)
	}
	if found[0] == nil {
		t.Skip("the file system of temporary files tells no extents")
	}
	if found[0].SharedBytes > found[0].UsedBytes || found[0].UsedBytes > 4<<20 {
		t.Errorf("%+v", found[0])
	}
}
