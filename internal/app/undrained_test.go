package app

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/pipeline"
)

func TestTheLastLineHasTheFigureOfTheMetric(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := pipeline.NewMetrics(reg, nil, nil)
	if n := undrained(reg); n != 0 {
		t.Errorf("%d at the start", n)
	}
	m.Undrained.WithLabelValues("writer").Add(3)
	m.Undrained.WithLabelValues("replayer").Add(4)
	if n := undrained(reg); n != 7 {
		t.Errorf("%d, want 7", n)
	}
}
