package stack

import (
	"testing"
	"time"
)

func TestAServerOfEachKindServes(t *testing.T) {
	for _, kind := range []Kind{DynamoDB, Cassandra, Kafka} {
		t.Run(kind.String(), func(t *testing.T) {
			begun := time.Now()
			s := Own(t, kind)
			t.Logf("%s serves on %s after %v", kind, s.Address(), time.Since(begun))
			if err := Ping(t.Context(), kind, s.Address()); err != nil {
				t.Fatal(err)
			}
			begun = time.Now()
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("restart took %v", time.Since(begun))
		})
	}
}
