package memory_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
	"github.com/restante/restante/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, sinktest.Config{
		Open: func(_ *testing.T, now func() time.Time) sinks.Store { return &memory.Store{Now: now} },
		Law:  sinktest.Commute,
	})
}

func BenchmarkApply(b *testing.B) { sinktest.Bench(b, &memory.Store{}) }
