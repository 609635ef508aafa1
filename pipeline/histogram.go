package pipeline

import (
	"slices"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/restante/restante/event"
)

// Histogram is a histogram with these buckets for servers that know no others, and with native ones, of 10 %, for those that do. What
// the buckets tell of must be a sentence.
func Histogram(name, help string, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: slices.Clone(buckets),
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  160,
		NativeHistogramMinResetDuration: time.Hour,
		NativeHistogramZeroThreshold:    1.0 / 1024,
	}
}

// FastBuckets are those of what takes milliseconds, such as a request, in seconds.
var FastBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// The others; what is promised of replays (1 s) and of writers (10 s, 30 s) stands among them.
var (
	persistBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	replayBuckets  = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	backlogBuckets = []float64{0, 1, 4, 16, 64, 256, 1024, 4096, 16384, 65536}
	countBuckets   = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384}
	sizeBuckets    = []float64{1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20}
	readBuckets    = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}
)

// ObserveExample observes a value and leaves with it, as an exemplar, what it was of: a dashboard leads from a slow point to that. It costs
// some allocations, so it is for one of many. What OpenMetrics does not take as an exemplar is left out, or is nothing.
func ObserveExample(to prometheus.Observer, value float64, name, of string) {
	const most = 128 // characters of name and value together
	with, ok := to.(prometheus.ExemplarObserver)
	if !ok || of == "" || !utf8.ValidString(of) || utf8.RuneCountInString(name)+utf8.RuneCountInString(of) > most {
		to.Observe(value)
		return
	}
	with.ObserveWithExemplar(value, prometheus.Labels{name: of})
}

// exampleMessage is the name of exemplars that are messages: what "restante trace" takes.
const exampleMessage = "msgid"

// slowest observes all that it is given, the largest at the end and with the message as an exemplar. It belongs to one goroutine.
type slowest struct {
	to   prometheus.Observer
	took float64
	id   event.ID
	some bool
}

func (s *slowest) observe(took float64, id event.ID) {
	switch {
	case !s.some:
	case took <= s.took:
		s.to.Observe(took)
		return
	default:
		s.to.Observe(s.took)
	}
	s.took, s.id, s.some = took, id, true
}

func (s *slowest) end() {
	if s.some {
		ObserveExample(s.to, s.took, exampleMessage, s.id.String())
	}
}
