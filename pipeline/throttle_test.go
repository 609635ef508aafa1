package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// disk is a store that reads one after another.
type disk struct {
	each time.Duration

	mu   sync.Mutex
	now  int
	most int
}

func (d *disk) read() error {
	d.mu.Lock()
	d.now++
	d.most = max(d.most, d.now)
	wait := d.each * time.Duration(d.now)
	d.mu.Unlock()
	time.Sleep(wait)
	d.mu.Lock()
	d.now--
	d.mu.Unlock()
	return nil
}

func unseen() prometheus.Observer { return prometheus.NewHistogram(prometheus.HistogramOpts{}) }

// storm makes so many reads as fast as they are let, and returns the order in which they began and how many ran at once after that.
func storm(t *testing.T, l *throttle, d *disk, n int) (order []int) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		wg.Go(func() {
			err := l.do(t.Context(), func() error {
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				return d.read()
			})
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait() // it has its place
	}
	wg.Wait()
	return order
}

func TestReadsFollowTheSpeedOfTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gauge := prometheus.NewGauge(prometheus.GaugeOpts{})
		l := newThrottle(64, 100*time.Millisecond, gauge, unseen())
		d := &disk{each: 10 * time.Millisecond}
		order := storm(t, l, d, 2000)
		if !slices.IsSorted(order) || len(order) != 2000 {
			t.Errorf("%d reads, in order: %t", len(order), slices.IsSorted(order))
		}
		if d.most > 64 {
			t.Errorf("%d reads ran at once, the limit is 64", d.most)
		}
		d.most = 0
		storm(t, l, d, 200)
		if d.most < 5 || d.most > 16 { // ten of them take 100 ms
			t.Errorf("%d reads ran at once of a store that has 100 ms for ten", d.most)
		}
		d.each, d.most = time.Microsecond, 0
		storm(t, l, d, 5000)
		if l.limit != 64 || d.most != 64 {
			t.Errorf("the limit is %d and %d reads ran at once, of a store that is fast again", l.limit, d.most)
		}
	})
}

func TestASlowStoreIsStillRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, most := range []int{1, 2, 3} {
			l := newThrottle(most, time.Millisecond, prometheus.NewGauge(prometheus.GaugeOpts{}), unseen())
			d := &disk{each: time.Second}
			if storm(t, l, d, 20); l.limit != min(most, leastReads) || d.most > most {
				t.Errorf("of %d the limit is %d and %d ran at once", most, l.limit, d.most)
			}
		}
	})
}

func TestWhoLeavesTheLineTakesNoPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newThrottle(1, time.Hour, prometheus.NewGauge(prometheus.GaugeOpts{}), unseen())
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = l.do(t.Context(), func() error {
				<-release
				return nil
			})
		})
		synctest.Wait()
		why := errors.New("why")
		ctx, cancel := context.WithCancelCause(t.Context())
		wg.Go(func() {
			if err := l.do(ctx, func() error { return nil }); !errors.Is(err, why) {
				t.Errorf("got %v, want why", err)
			}
		})
		read := false
		synctest.Wait()
		wg.Go(func() {
			_ = l.do(t.Context(), func() error {
				read = true
				return nil
			})
		})
		synctest.Wait()
		cancel(why)
		synctest.Wait()
		close(release)
		wg.Wait()
		if !read || l.line.free != 1 {
			t.Errorf("the next has read: %t; %d places are free, want 1", read, l.line.free)
		}
	})
}
