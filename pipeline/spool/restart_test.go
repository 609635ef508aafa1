package spool

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

func TestWhatIsOnDiskIsDeliveredByTheNextProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := newKafka(0)
		away.set(true)
		s := start(t, newMemory(), away)
		for _, v := range numbered("m", 20) {
			s.append(message("t", v))
		}
		began := time.Now()
		s.close()
		if took := time.Since(began); took > after+innerClose {
			t.Errorf("the end took %v", took)
		}
		k := newKafka(0)
		s = start(t, s.disk, k)
		if !s.spools() {
			t.Error("records are passed on before those on the disk")
		}
		s.wait(s.append(message("t", "new")))
		time.Sleep(10 * time.Second)
		compare(t, "the log", append(numbered("m", 20), "new"), k.values(""))
		s.close()
		k = newKafka(0)
		s = start(t, s.disk, k)
		if s.spools() {
			t.Error("it spools with nothing on the disk")
		}
		time.Sleep(time.Minute)
		s.close()
		compare(t, "the log of the third", nil, k.values(""))
	})
}

func TestNothingIsDrainedBeforeKafkaIsAsItMustBe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, ready := newKafka(0), make(chan struct{})
		s := start(t, newMemory(), k, func(c *Config) { c.Ready = ready })
		for _, v := range numbered("m", 5) {
			s.wait(s.append(message("t", v)))
		}
		time.Sleep(time.Hour)
		compare(t, "the log", nil, k.values(""))
		close(ready)
		time.Sleep(time.Second)
		compare(t, "the log", numbered("m", 5), k.values(""))
		s.close()
	})
}

func TestARecordThatWaitedForLongIsStampedAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKafka(0)
		k.set(true)
		s := start(t, newMemory(), k)
		at := time.Now()
		s.wait(s.append(message("t", "in flight"))) // Kafka has it with its first stamp
		s.wait(s.append(message("t", "old")))
		time.Sleep(10 * time.Minute)
		s.wait(s.append(message("t", "young")))
		young := time.Now()
		time.Sleep(time.Minute)
		k.set(false)
		time.Sleep(time.Second)
		times := map[string]time.Time{}
		for _, o := range k.records() {
			times[string(o.Value)] = o.Time
			if h := slices.ContainsFunc(o.Headers, func(h event.Header) bool { return h.Key == "ce_time" }); h != (string(o.Value) == "old") {
				t.Errorf("%s has ce_time: %v", o.Value, h)
			}
		}
		if !times["in flight"].Equal(at) || times["old"].Sub(at) < 11*time.Minute || !times["young"].Equal(young) {
			t.Errorf("stamps %v", times)
		}
		s.close()
	})
}

func TestAKillInTheMiddleOfADrainLosesNothing(t *testing.T) {
	t.Parallel()
	for drains := time.Millisecond; drains < 100*time.Millisecond; drains += 9 * time.Millisecond {
		t.Run(drains.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k := newKafka(2 * time.Millisecond)
				k.set(true)
				s := start(t, newMemory(), k)
				var receipts []pipeline.Receipt
				for _, v := range numbered("m", 100) {
					receipts = append(receipts, s.append(message("t", v)))
				}
				for _, r := range receipts {
					s.wait(r)
				}
				ended, cancel := context.WithCancel(t.Context())
				cancel()
				_ = s.Close(ended) // the next one has nothing in flight
				first := newKafka(2 * time.Millisecond)
				s = start(t, s.disk, first)
				time.Sleep(drains)
				first.set(true)
				time.Sleep(time.Second) // what was drained is noted
				after := copyOf(s.disk)
				_ = s.Close(ended)
				second := newKafka(0)
				s = start(t, after, second)
				time.Sleep(10 * time.Second)
				all := append(first.values(""), second.values("")...)
				compare(t, "both together", numbered("m", 100), firsts(all))
				if n := len(all); n > 101 {
					t.Errorf("%d records were repeated", n-100)
				}
				s.close()
			})
		})
	}
}

// Many callers, none of which waits for another, while Kafka comes and goes.
func TestEachCallerKeepsItsOrderWhileKafkaComesAndGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const callers, end = 16, 40 * time.Second
		k := newKafka(3 * time.Millisecond)
		k.room = 64
		s := start(t, newMemory(), k)
		var wg sync.WaitGroup
		counts := make([]int, callers)
		for c := range callers {
			wg.Go(func() {
				began := time.Now()
				for ; time.Since(began) < end; counts[c]++ {
					key := fmt.Sprintf("t%02d", c)
					r, err := s.Append(t.Context(), message(key, fmt.Sprintf("%s %05d", key, counts[c])))
					if err != nil {
						t.Errorf("append: %v", err)
						return
					}
					if counts[c]%5 == 4 { // the others follow each other without waiting
						if err := pipeline.Wait(t.Context(), r); err != nil {
							t.Errorf("receipt: %v", err)
						}
					}
					time.Sleep(time.Duration(c+10) * time.Millisecond)
				}
			})
		}
		for round := range 20 {
			time.Sleep(time.Duration(50+97*round) * time.Millisecond)
			k.set(true)
			time.Sleep(time.Duration(1000-45*round) * time.Millisecond)
			k.set(false)
		}
		wg.Wait()
		time.Sleep(time.Minute)
		got := map[string][]string{}
		for _, v := range firsts(k.values("")) {
			got[v[:3]] = append(got[v[:3]], v)
		}
		for c, n := range counts {
			var want []string
			key := fmt.Sprintf("t%02d", c)
			for i := range n {
				want = append(want, fmt.Sprintf("%s %05d", key, i))
			}
			compare(t, key, want, got[key])
		}
		if s.spools() {
			t.Error("it still spools")
		}
		if strings.Count(s.log.String(), "spooling begins") < 5 {
			t.Errorf("it hardly ever began:\n%s", s.log)
		}
		s.close()
	})
}
