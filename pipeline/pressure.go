package pipeline

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pressureCounter is a metric of the time that calls have waited, of all of them together. Those that still wait are in it: where nothing is
// taken for an hour it rises during that hour, and not behind it. Make it with [newPressureCounter]; it is safe for concurrent use.
type pressureCounter struct {
	desc  *prometheus.Desc
	epoch time.Time

	mu      sync.Mutex
	inside  int           // calls
	entered time.Duration // the sum of when they began, from epoch on
	waited  time.Duration // by calls that have ended
	told    time.Duration // a counter never falls
}

func newPressureCounter(name, help string) *pressureCounter {
	return &pressureCounter{desc: prometheus.NewDesc(name, help, nil, nil), epoch: time.Now()}
}

// begin notes a call that begins now.
func (p *pressureCounter) begin(now time.Time) {
	at := now.Sub(p.epoch)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inside++
	p.entered += at
}

// end notes that a call which began then has ended. What took no time to speak of has not waited.
func (p *pressureCounter) end(began time.Time) {
	const least = time.Millisecond
	at, took := began.Sub(p.epoch), time.Since(began)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inside--
	p.entered -= at
	if took >= least {
		p.waited += took
	}
}

func (p *pressureCounter) value() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.waited + time.Duration(p.inside)*time.Since(p.epoch) - p.entered
	p.told = max(p.told, now)
	return p.told.Seconds()
}

// Describe implements [prometheus.Collector].
func (p *pressureCounter) Describe(to chan<- *prometheus.Desc) { to <- p.desc }

// Collect implements [prometheus.Collector].
func (p *pressureCounter) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(p.desc, prometheus.CounterValue, p.value())
}
