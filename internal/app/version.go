package app

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// version is set by the linker in releases; else the module's own is taken.
var version = ""

// Build says what the program was built from.
type Build struct {
	Version   string
	Revision  string
	GoVersion string
}

// ReadBuild reads what the compiler wrote into the program.
func ReadBuild() Build {
	b := Build{Version: version, Revision: "unknown", GoVersion: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	var dirty bool
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty {
		b.Revision += "-dirty"
	}
	return b
}

// String is one line for -version.
func (b Build) String() string {
	return fmt.Sprintf("%s (revision %s, %s)", b.Version, b.Revision, b.GoVersion)
}

// NewRegistry makes a registry with the metrics of the runtime, the process and the build, and of how long it has been ending.
func NewRegistry(component string, h *Health) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	b := ReadBuild()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "restante_build_info",
		Help: "What the process was built from; always 1.",
		ConstLabels: prometheus.Labels{
			"component": component, "version": b.Version, "revision": b.Revision, "goversion": b.GoVersion,
		},
	})
	info.Set(1)
	drained := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "restante_shutdown_drain_duration_seconds",
		Help:        "How long the process has been finishing what it holds, since it was asked to end; 0 before. What the last scrape does not see, its log says.",
		ConstLabels: prometheus.Labels{"component": component},
	}, func() float64 { return h.Drained().Seconds() })
	reg.MustRegister(info, drained, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
