package ports_test

import (
	"net"
	"testing"

	"github.com/restante/restante/internal/stack/ports"
)

func TestPortsAreTakenOnce(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 50 {
		taken, err := ports.Take(4)
		if err != nil {
			t.Fatal(err)
		}
		defer ports.Free(taken)
		for _, p := range taken {
			if seen[p.Number] || p.Number < 12000 || p.Number >= 32000 {
				t.Errorf("port %d was taken before or is none of ours", p.Number)
			}
			seen[p.Number] = true
		}
	}
}

func TestAnAddressIsFreeAndStaysItsTests(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 50 {
		addr := ports.Addr(t)
		if seen[addr] {
			t.Fatalf("%s was given twice", addr)
		}
		seen[addr] = true
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
