package packet

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// passInstructions is a program that does nothing.
func passInstructions() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}
}

// checksumFlag is BPF_F_IPV6 of bpf_l4_csum_replace, from Linux 6.16.
const checksumFlag = 1 << 7

// setChecksumFlag sets what bpf/rewrite.h calls ipv6_checksum_flag.
func setChecksumFlag(spec *ebpf.CollectionSpec) error {
	v := spec.Variables["ipv6_checksum_flag"]
	if v == nil {
		return fmt.Errorf("the packet programs have no ipv6_checksum_flag")
	}
	var value uint64
	if takesChecksumFlag() {
		value = checksumFlag
	}
	if err := v.Set(value); err != nil {
		return fmt.Errorf("setting ipv6_checksum_flag: %w", err)
	}
	return nil
}

// takesChecksumFlag asks the kernel by running the helper on a packet of zeros:
// a kernel that does not know the flag answers EINVAL.
func takesChecksumFlag() bool {
	if features.HaveProgramType(ebpf.SchedCLS) != nil {
		return false
	}
	// flags: a field of 16 bits that covers a pseudo header, in IPv6.
	const pseudoHeader = 1 << 4
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 14), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 0),
			asm.Mov.Imm(asm.R5, pseudoHeader|checksumFlag),
			asm.FnL4CsumReplace.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		return false
	}
	defer func() { _ = prog.Close() }()
	result, _, err := prog.Test(make([]byte, 64))
	return err == nil && result == 0
}
