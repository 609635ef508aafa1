package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/internal/stack"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(stack.Main(m), goleak.Cleanup(func(code int) {
		if err := figures.publish(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			code = max(code, 1)
		}
		os.Exit(code)
	}))
}

// figure is one line of the table. Target is nil where none is set.
type figure struct {
	Benchmark string   `json:"benchmark"`
	Name      string   `json:"figure"`
	Value     float64  `json:"value"`
	Unit      string   `json:"unit"`
	AtLeast   *float64 `json:"at_least,omitempty"`
	AtMost    *float64 `json:"at_most,omitempty"`
}

// verdict is only said, never held.
func (f figure) verdict() (target, met string) {
	switch {
	case f.AtLeast != nil:
		target, met = fmt.Sprintf("≥ %g", *f.AtLeast), "yes"
		if f.Value < *f.AtLeast {
			met = "NO"
		}
	case f.AtMost != nil:
		target, met = fmt.Sprintf("≤ %g", *f.AtMost), "yes"
		if f.Value > *f.AtMost {
			met = "NO"
		}
	}
	return target, met
}

// table collects the figures of a run.
type table struct {
	mu   sync.Mutex
	rows []figure
}

var figures table

// add reports a figure as a metric of the benchmark and as a line of the table.
func (t *table) add(b *testing.B, f figure) {
	b.Helper()
	f.Benchmark = b.Name()
	b.ReportMetric(f.Value, strings.ReplaceAll(f.Name+":"+f.Unit, " ", "-"))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, f)
}

// report adds a figure without a target.
func report(b *testing.B, name string, value float64, unit string) {
	b.Helper()
	figures.add(b, figure{Name: name, Value: value, Unit: unit})
}

// atLeast adds a figure that should not be below its target.
func atLeast(b *testing.B, name string, value float64, unit string, target float64) {
	b.Helper()
	figures.add(b, figure{Name: name, Value: value, Unit: unit, AtLeast: &target})
}

// atMost adds a figure that should not be above its target.
func atMost(b *testing.B, name string, value float64, unit string, target float64) {
	b.Helper()
	figures.add(b, figure{Name: name, Value: value, Unit: unit, AtMost: &target})
}

// publish prints the table, and writes it where RESTANTE_BENCH_JSON says.
func (t *table) publish() error {
	if len(t.rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nbenchmark\tfigure\tmedian or quantile\ttarget\tmet")
	for _, f := range t.rows {
		target, met := f.verdict()
		fmt.Fprintf(w, "%s\t%s\t%s %s\t%s\t%s\n", strings.TrimPrefix(f.Benchmark, "Benchmark"), f.Name, plain(f.Value), f.Unit, target, met)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	path := os.Getenv("RESTANTE_BENCH_JSON")
	if path == "" {
		return nil
	}
	out, err := json.MarshalIndent(struct {
		At      time.Time `json:"at"`
		Go      string    `json:"go"`
		CPUs    int       `json:"cpus"`
		Figures []figure  `json:"figures"`
	}{time.Now().UTC(), runtime.Version(), runtime.NumCPU(), t.rows}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(out, '\n'), 0o600)
}

// plain writes three digits that count.
func plain(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// quantile sorts all and returns the value below which the share q of them lies.
func quantile[T cmp.Ordered](all []T, q float64) T {
	slices.Sort(all)
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

func median[T cmp.Ordered](all []T) T { return quantile(all, 0.5) }

// ratios divides pairwise: each pair was measured side by side.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
