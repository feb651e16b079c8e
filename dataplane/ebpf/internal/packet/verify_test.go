package packet

import "testing"

// verifierLimit is how many steps the verifier of any kernel takes before it
// refuses a program.
const verifierLimit = 1_000_000

// TestVerifierSteps keeps the programs well below what the verifier takes: how
// many steps it needs differs from kernel to kernel.
func TestVerifierSteps(t *testing.T) {
	for name, p := range programs(t).Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		steps, ok := info.VerifiedInstructions()
		t.Logf("%s: %d steps (known: %t)", name, steps, ok)
		if steps > verifierLimit*9/10 {
			t.Errorf("%s takes the verifier %d steps; nine tenths of the limit are %d", name, steps, verifierLimit*9/10)
		}
	}
}
