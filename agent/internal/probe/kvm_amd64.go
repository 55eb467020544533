package probe

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/kvm.h.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmVcpuMmapSize  = 0xae04
	kvmGetCPUID      = 0xc008ae05 // KVM_GET_SUPPORTED_CPUID
	kvmCreateVcpu    = 0xae41
	kvmSetTSSAddr    = 0xae47
	kvmSetMemory     = 0x4020ae46
	kvmRun           = 0xae80
	kvmSetRegs       = 0x4090ae82
	kvmGetSregs      = 0x8138ae83
	kvmSetSregs      = 0x4138ae84
	kvmSetCPUID      = 0x4008ae90 // KVM_SET_CPUID2

	apiVersion = 12
	exitIO     = 2
	exitHlt    = 5

	port      = 0xe9
	memory    = 0x200000
	codeAt    = 0x1000
	stackAt   = 0x9000 // grows down
	pml4At    = 0x10000
	pdptAt    = 0x11000
	pdAt      = 0x12000
	regsSize  = 18 * 8 // struct kvm_regs
	sregsSize = 312    // struct kvm_sregs
	maxCPUID  = 256    // KVM_MAX_CPUID_ENTRIES
)

// program runs in ring 0 of 64-bit mode with paging, as a kernel does: a loop of half a million rounds with a push, a pop and a
// store each, then one byte to a port, then a halt. A few instructions in real mode prove nothing: there are KVMs without
// hardware behind them (kvm-pvm in a cloud machine) that interpret supervisor code one instruction at a time. They pass that, and
// no ordinary kernel ever comes up on them. Hardware takes some milliseconds, an emulated AMD-V some 50 ms, they 3 s.
var program = []byte{
	0xb9, 0x20, 0xa1, 0x07, 0x00, // mov ecx, 500000
	0x51,                                     // again: push rcx
	0x58,                                     // pop rax
	0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // mov [0x8000], eax
	0xff, 0xc9, // dec ecx
	0x75, 0xf3, // jnz again
	0xb0, 'N', // mov al, 'N'
	0xe6, port, // out 0xe9, al
	0xf4, // hlt
}

func call(fd int, request, arg uintptr) (int, error) {
	for {
		n, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		if no != unix.EINTR {
			return result(n, no)
		}
	}
}

// hand is call with a structure. It may be on the stack, which moves: only a pointer is moved with it.
func hand(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if no != unix.EINTR {
			return result(n, no)
		}
	}
}

func result(n uintptr, no unix.Errno) (int, error) {
	if no != 0 {
		return -1, no
	}
	return int(n), nil
}

// RunGuest makes a machine of 2 MiB and runs a small program in it. That /dev/kvm opens says little.
func RunGuest() KVM {
	runtime.LockOSThread() // a virtual CPU belongs to the thread that made it
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
	case unix.EACCES, unix.EPERM:
		return verdict("no-permission", "/dev/kvm may not be opened by this user")
	case unix.ENOENT:
		return verdict("no-device", "there is no /dev/kvm")
	default:
		return verdict("no-device", "/dev/kvm cannot be opened: "+err.Error())
	}
	if v, err := call(kvm, kvmGetAPIVersion, 0); err != nil || v != apiVersion {
		return verdict("no-api", fmt.Sprintf("/dev/kvm has API version %d, not %d", v, apiVersion))
	}
	run, err := makeGuest(kvm)
	if err != nil {
		return verdict("guest-does-not-run", err.Error())
	}
	return run.judge()
}

type guest struct {
	vcpu int
	area []byte // struct kvm_run
}

func makeGuest(kvm int) (*guest, error) {
	vm, err := call(kvm, kvmCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	ram, err := unix.Mmap(-1, 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	copy(ram[codeAt:], program)
	le := binary.LittleEndian
	const present, writable, large = 1, 2, 1 << 7
	le.PutUint64(ram[pml4At:], pdptAt|present|writable)
	le.PutUint64(ram[pdptAt:], pdAt|present|writable)
	le.PutUint64(ram[pdAt:], 0|present|writable|large) // the first 2 MiB, where they are
	// Intel without "unrestricted guest" needs three pages for its own use; AMD ignores it.
	_, _ = call(vm, kvmSetTSSAddr, 0xfffbd000)
	region := struct {
		slot, flags         uint32
		at, size, userspace uint64
	}{size: memory, userspace: uint64(uintptr(unsafe.Pointer(&ram[0])))}
	if _, err := hand(vm, kvmSetMemory, unsafe.Pointer(&region)); err != nil {
		return nil, fmt.Errorf("KVM_SET_USER_MEMORY_REGION: %w", err)
	}
	vcpu, err := call(vm, kvmCreateVcpu, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VCPU: %w", err)
	}
	size, err := call(kvm, kvmVcpuMmapSize, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	area, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap of kvm_run: %w", err)
	}
	if err := setCPUID(kvm, vcpu); err != nil {
		return nil, err
	}
	return &guest{vcpu, area}, setRegisters(vcpu)
}

// setCPUID gives the guest all features that the host's KVM has: newer kernels refuse a long mode that CPUID does not know of.
func setCPUID(kvm, vcpu int) error {
	list := struct {
		count, _ uint32
		entries  [maxCPUID][40]byte // struct kvm_cpuid_entry2
	}{count: maxCPUID}
	if _, err := hand(kvm, kvmGetCPUID, unsafe.Pointer(&list)); err != nil {
		return fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	if _, err := hand(vcpu, kvmSetCPUID, unsafe.Pointer(&list)); err != nil {
		return fmt.Errorf("KVM_SET_CPUID2: %w", err)
	}
	return nil
}

func setRegisters(vcpu int) error {
	var sregs [sregsSize]byte
	if _, err := hand(vcpu, kvmGetSregs, unsafe.Pointer(&sregs[0])); err != nil {
		return fmt.Errorf("KVM_GET_SREGS: %w", err)
	}
	longMode(&sregs)
	if _, err := hand(vcpu, kvmSetSregs, unsafe.Pointer(&sregs[0])); err != nil {
		return fmt.Errorf("KVM_SET_SREGS: %w", err)
	}
	var regs [regsSize]byte
	le := binary.LittleEndian
	le.PutUint64(regs[6*8:], stackAt) // rsp
	le.PutUint64(regs[16*8:], codeAt) // rip
	le.PutUint64(regs[17*8:], 2)      // rflags: the bit that is always set
	if _, err := hand(vcpu, kvmSetRegs, unsafe.Pointer(&regs[0])); err != nil {
		return fmt.Errorf("KVM_SET_REGS: %w", err)
	}
	return nil
}

// longMode sets flat 64-bit segments, the page tables and the control registers (struct kvm_sregs and kvm_segment).
func longMode(sregs *[sregsSize]byte) {
	const (
		cs, ss, cr0, cr3, cr4, efer      = 0, 120, 224, 240, 248, 264
		code, data                       = 11, 3 // types, both accessed
		protected, extension, write, pag = 1, 1 << 4, 1 << 16, 1 << 31
		pae                              = 1 << 5
		longEnable, longActive           = 1 << 8, 1 << 10
	)
	le := binary.LittleEndian
	for at := cs; at <= ss; at += 24 { // cs ds es fs gs ss
		seg := sregs[at : at+24]
		clear(seg)
		le.PutUint32(seg[8:], 0xffffffff)
		seg[12], seg[14] = 16, data                     // selector, type
		seg[15], seg[17], seg[18], seg[20] = 1, 1, 1, 1 // present, db, s, g
		if at == cs {
			seg[12], seg[14] = 8, code
			seg[17], seg[19] = 0, 1 // 64 bits
		}
	}
	le.PutUint64(sregs[cr0:], protected|extension|write|pag)
	le.PutUint64(sregs[cr3:], pml4At)
	le.PutUint64(sregs[cr4:], pae)
	le.PutUint64(sregs[efer:], longEnable|longActive)
}

// judge expects the byte at the port, then the halt.
func (g *guest) judge() KVM {
	le := binary.LittleEndian
	for _, want := range []uint32{exitIO, exitHlt} {
		if _, err := call(g.vcpu, kvmRun, 0); err != nil {
			return verdict("guest-does-not-run", "KVM_RUN: "+err.Error())
		}
		reason := le.Uint32(g.area[8:])
		if reason != want {
			return verdict("guest-does-not-run", fmt.Sprintf("the guest left with exit reason %d instead of %d", reason, want))
		}
		if reason == exitIO {
			at := le.Uint64(g.area[40:])
			if le.Uint16(g.area[34:]) != port || at >= uint64(len(g.area)) || g.area[at] != 'N' {
				return verdict("guest-does-not-run", "the guest did not write what it was told to")
			}
		}
	}
	return verdict("ok", "a guest ran")
}
