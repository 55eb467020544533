//go:build !amd64

package probe

// TSC is the answer of `nexus-probe tsc`: the rate of this machine's time stamp counter.
type TSC struct {
	KHz    *int64 `json:"khz"`
	Detail string `json:"detail,omitempty"`
}

// MeasureTSC finds none: only x86 has this counter.
func MeasureTSC() TSC { return TSC{Detail: "this machine has no TSC"} }

// RunGuest is not written for this machine.
func RunGuest() KVM { return verdict("no-api", "the probe cannot run a guest on this kind of machine") }
