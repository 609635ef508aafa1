package pipeline_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

// TestAnIDThatDoesNotFitItsPublishGetsItsTime: and an ack that names the broker's id finds the message.
func TestAnIDThatDoesNotFitItsPublishGetsItsTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		apart  time.Duration // of the id from the publish
		ahead  time.Duration // of the publish from our clock
		repair bool
	}{
		"fits":                    {apart: 5 * time.Minute},
		"fits, before":            {apart: -5 * time.Minute},
		"later":                   {apart: 5*time.Minute + time.Millisecond, repair: true},
		"earlier":                 {apart: -24 * time.Hour, repair: true},
		"a clock that is ahead":   {ahead: time.Hour},
		"a clock that is behind":  {ahead: -time.Hour},
		"ahead, and does not fit": {ahead: time.Hour, apart: time.Hour, repair: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, 1)
				in := startIngest(s)
				e := in.message("t/1", "x")
				e.Source, e.At = "restante/emqx/n1", time.Now().Add(c.ahead).Truncate(time.Millisecond)
				e.ID = eventtest.ID(t, "000660E2BFC3B3B2F49E000001AD0001").WithTime(e.At.Add(c.apart))
				in.accept(t, e)
				in.accept(t, event.Acked{Topic: e.Topic, Client: "c", Message: e.ID})
				synctest.Wait()
				want := e.ID
				if c.repair {
					want = want.WithTime(e.At)
				}
				var ids []event.ID
				for _, r := range s.cluster.Records(s.messages(0)) {
					got, err := event.Decode(event.Messages, r.Wire)
					if err != nil {
						t.Fatal(err)
					}
					if p, ok := got.(event.Published); ok {
						ids = append(ids, p.ID)
					}
					if a, ok := got.(event.Acked); ok {
						ids = append(ids, a.Message)
					}
				}
				if len(ids) != 2 || ids[0] != want || ids[1] != want {
					t.Errorf("stored and acknowledged %v, want %s", ids, want)
				}
				ahead, behind := counterOf(t, s.metrics.ReplacedIDs.WithLabelValues("ahead")), counterOf(t, s.metrics.ReplacedIDs.WithLabelValues("behind"))
				if (ahead == 1) != (c.repair && c.apart > 0) || (behind == 1) != (c.repair && c.apart < 0) {
					t.Errorf("%v ids ahead and %v behind were replaced", ahead, behind)
				}
				if got := counterOf(t, s.metrics.BrokerClock.WithLabelValues(e.Source)); got != c.ahead.Seconds() {
					t.Errorf("the clock is said to be %v s ahead, want %v", got, c.ahead.Seconds())
				}
			})
		})
	}
}
