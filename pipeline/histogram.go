package pipeline

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	countBuckets   = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384}
	sizeBuckets    = []float64{1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20}
	readBuckets    = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}
)
