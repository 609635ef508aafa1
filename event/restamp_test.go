package event_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
)

func TestARecordThatHasWaitedIsStampedAnewAndTellsTheSameEvent(t *testing.T) {
	t.Parallel()
	head := event.Head{ID: event.IDOf(now.UnixMicro(), 1, 1), Source: "restante/x", At: now.Truncate(time.Millisecond)}
	e := event.Published{Head: head, Topic: eventtest.Topic(t, "t/1"), QoS: 1, Payload: []byte("x")}
	route := e.Routes()[0]
	for name, at := range map[string]struct {
		later  time.Duration
		anew   bool
		before time.Duration // how far off the broker's clock was at first
	}{
		"at once":                 {},
		"after 5 minutes":         {later: 5 * time.Minute},
		"after more":              {later: 5*time.Minute + time.Millisecond, anew: true},
		"a clock that went back":  {later: -6 * time.Minute, anew: true},
		"stamped by ingest then":  {later: time.Minute, before: time.Hour},
		"stamped by ingest twice": {later: time.Hour, before: time.Hour, anew: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := event.Encode(e, route, now.Add(at.before))
			kept := append([]event.Header(nil), first.Headers...)
			later := now.Add(at.before + at.later)
			got := event.Restamp(first, later)
			want := first.Time
			if at.anew {
				want = later
			}
			if !got.Time.Equal(want) {
				t.Errorf("record time %v, want %v", got.Time, want)
			}
			back, err := event.Decode(route.Kind, got)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(event.Event(e), back, sameEvent); diff != "" {
				t.Errorf("the event (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(kept, first.Headers); diff != "" {
				t.Errorf("the record given has changed:\n%s", diff)
			}
		})
	}
}

func TestOnlyAnAliasIsAnAlias(t *testing.T) {
	t.Parallel()
	for _, c := range goldenCases(t) {
		for _, r := range c.event.Routes() {
			_, want := c.event.(event.Replayed)
			if got := event.Encode(c.event, r, now).IsAlias(); got != want {
				t.Errorf("%s: IsAlias() = %v, want %v", c.name, got, want)
			}
		}
	}
	if (event.Wire{}).IsAlias() {
		t.Error("a record without headers is an alias")
	}
}
