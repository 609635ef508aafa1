package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/audit"
	"github.com/restante/restante/sinks"
)

func TestEachDifferenceIsNamed(t *testing.T) {
	t.Parallel()
	for sentence, plant := range map[string]func(w *world) []seen{
		"everything is as it must be": func(w *world) []seen {
			kept, _ := w.publish("t/1", "kept")
			w.apply(kept)
			gone, _ := w.publish("t/1", "acked")
			w.ack(gone)
			w.publish("h/1", "for the record only")
			w.publish("u/1", "of no rule")
			w.commit()
			w.publish("t/1", "in flight")
			return nil
		},
		"a row is missing": func(w *world) []seen {
			m, at := w.publish("t/1", "lost")
			w.commit()
			return []seen{{audit.Missing, m.ID, at}}
		},
		"a row is missing and a second copy is in flight": func(w *world) []seen {
			m, at := w.publish("t/1", "lost")
			w.commit()
			w.append(m)
			return []seen{{audit.Missing, m.ID, at}}
		},
		"a row is missing of a record that was redriven": func(w *world) []seen {
			m, at := w.publish("t/1", "lost twice")
			w.bury("t/1", at)
			w.append(m)
			w.commit()
			return []seen{{audit.Missing, m.ID, at}}
		},
		"a row of an acked message": func(w *world) []seen {
			m, _ := w.publish("t/1", "acked")
			at := w.ack(m)
			w.commit()
			w.apply(m)
			return []seen{{audit.Undeleted, m.ID, at}}
		},
		"a row whose ack is not committed": func(w *world) []seen {
			m, _ := w.publish("t/1", "acked")
			w.apply(m)
			w.commit()
			w.ack(m)
			return nil
		},
		"a row of nowhere": func(w *world) []seen {
			m := w.message("t/1", "forged")
			w.apply(m)
			w.commit()
			return []seen{{audit.Unknown, m.ID, -1}}
		},
		"a row of nowhere in a topic that the log does not know": func(w *world) []seen {
			m := w.message("t/other", "forged")
			w.apply(m)
			return []seen{{audit.Unknown, m.ID, -1}}
		},
		"a row that is another's": func(w *world) []seen {
			m, at := w.publish("t/1", "published")
			w.commit()
			m.Payload = []byte("stored")
			w.apply(m)
			return []seen{{audit.Differs, m.ID, at}}
		},
		"a row at another QoS": func(w *world) []seen {
			m, at := w.publish("t/1", "published")
			w.commit()
			m.QoS = 2
			w.apply(m)
			return []seen{{audit.Differs, m.ID, at}}
		},
		"a dead letter": func(w *world) []seen {
			_, at := w.publish("t/1", "too long")
			w.bury("t/1", at)
			w.commit()
			return nil
		},
		"a dead letter of another sink": func(w *world) []seen {
			m, at := w.publish("t/1", "too long")
			d := w.deadLetters(w.cluster.Client())
			d.Group = "restante.writer.other"
			if err := d.Bury(w.t.Context(), w.cluster.Records(part("t/1"))[at], pipeline.ReasonRejected, errors.New("too long")); err != nil {
				w.t.Fatal(err)
			}
			w.commit()
			return []seen{{audit.Missing, m.ID, at}}
		},
		"an expired message": func(w *world) []seen {
			w.publish("t/1", "expires")
			w.commit()
			time.Sleep(ttl)
			return nil
		},
		"a malformed record without a letter": func(w *world) []seen {
			w.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Key: []byte("t/1"), Value: []byte("x"), Time: time.Now()}})
			w.commit()
			return []seen{{audit.Unburied, event.ID{}, 0}}
		},
		"a malformed record with its letter": func(w *world) []seen {
			w.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Key: []byte("t/1"), Value: []byte("x"), Time: time.Now()}})
			w.bury("t/1", 0)
			w.commit()
			return nil
		},
		"records were removed before they were stored": func(w *world) []seen {
			for range 5 {
				w.publish("t/1", "x")
			}
			w.cluster.Reset(group, part("t/1"), 2)
			w.cluster.Retain(part("t/1"), 4)
			return []seen{{audit.Skipped, event.ID{}, 2}}
		},
		"a committed offset beyond the end": func(w *world) []seen {
			w.cluster.Reset(group, part("t/1"), 7)
			return []seen{{audit.Beyond, event.ID{}, 7}}
		},
		"session events were removed before they were stored": func(w *world) []seen {
			tp := pipeline.TP{Topic: topics.Sessions}
			for range 3 {
				w.cluster.Put(pipeline.Outgoing{Topic: topics.Sessions, Wire: event.Wire{Key: []byte("x"), Time: time.Now()}})
			}
			w.cluster.Reset(group, tp, 1)
			w.cluster.Retain(tp, 2)
			return []seen{{audit.Skipped, event.ID{}, 1}}
		},
		"nothing was ever committed": func(w *world) []seen {
			w.publish("t/1", "in flight")
			w.ack(w.message("t/1", "of before"))
			return nil
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				want := plant(w)
				_, found := w.audit(nil)
				w.same(sentence, want, found)
			})
		})
	}
}

func TestRetainedMessagesAreCompared(t *testing.T) {
	t.Parallel()
	for sentence, plant := range map[string]func(w *world) []seen{
		"the newest one is there": func(w *world) []seen {
			w.retain("r/1", "first")
			m, _ := w.retain("r/1", "second")
			w.apply(m)
			w.commit()
			return nil
		},
		"a later one is on its way": func(w *world) []seen {
			m, _ := w.retain("r/1", "first")
			w.apply(m)
			w.commit()
			w.retain("r/1", "second")
			return nil
		},
		"a later one is there before it is committed": func(w *world) []seen {
			w.retain("r/1", "first")
			w.commit()
			m, _ := w.retain("r/1", "second")
			w.apply(m)
			return nil
		},
		"it was removed before that is committed": func(w *world) []seen {
			w.retain("r/1", "first")
			w.commit()
			w.retain("r/1", "")
			return nil
		},
		"it is missing": func(w *world) []seen {
			m, at := w.retain("r/1", "first")
			w.commit()
			return []seen{{audit.Missing, m.ID, at}}
		},
		"it is missing, and stands before its removal in the log": func(w *world) []seen {
			w.retain("r/1", "first")
			w.retain("r/1", "")
			w.commit()
			return nil
		},
		"it is an older one": func(w *world) []seen {
			m, _ := w.retain("r/1", "first")
			_, at := w.retain("r/1", "second")
			w.commit()
			w.apply(m)
			return []seen{{audit.Stale, m.ID, at}}
		},
		"it was removed": func(w *world) []seen {
			m, _ := w.retain("r/1", "first")
			_, at := w.retain("r/1", "")
			w.commit()
			w.apply(m)
			return []seen{{audit.Undeleted, m.ID, at}}
		},
		"it is in the dead letters": func(w *world) []seen {
			_, at := w.retain("r/1", "first")
			w.bury("r/1", at)
			w.commit()
			return nil
		},
		"it has expired": func(w *world) []seen {
			w.retain("r/1", "first")
			w.commit()
			time.Sleep(ttl)
			return nil
		},
		"it is of nowhere": func(w *world) []seen {
			m := w.message("r/1", "forged")
			m.Retain = true
			w.apply(m)
			return []seen{{audit.Unknown, m.ID, -1}}
		},
		"it is older than the log": func(w *world) []seen {
			m, _ := w.retain("r/1", "first")
			w.apply(m)
			time.Sleep(time.Hour)
			w.retain("r/1", "refused")
			w.bury("r/1", 1)
			w.commit()
			w.cluster.Retain(part("r/1"), 1)
			return nil
		},
		"it was removed in the same moment": func(w *world) []seen {
			m, _ := w.retain("r/1", "first")
			m.ID, m.Payload = event.IDOf(m.ID.Micros(), 0, 1), nil
			w.append(m)
			w.commit()
			return nil
		},
		"it is repeated, and may have been removed before the log's beginning": func(w *world) []seen {
			m, _ := w.retain("r/1", "first")
			w.retain("r/1", "")
			time.Sleep(time.Hour)
			w.append(m)
			w.commit()
			w.cluster.Retain(part("r/1"), 2)
			return nil
		},
		"it is another's": func(w *world) []seen {
			m, at := w.retain("r/1", "published")
			w.commit()
			m.Payload = []byte("stored")
			w.apply(m)
			return []seen{{audit.Differs, m.ID, at}}
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				want := plant(w)
				_, found := w.audit(nil)
				w.same(sentence, want, found)
				if _, found = w.audit(func(a *audit.Audit) { a.Retained = false }); len(found) > 0 {
					t.Errorf("without rules for them: %v", found)
				}
			})
		})
	}
}

// What lies before the log's beginning is not judged.
func TestALogThatWasCutSaysNothingOfWhatWasBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old, _ := w.publish("t/1", "stored long ago")
		w.apply(old)
		acked, _ := w.publish("t/1", "acked before the beginning")
		w.ack(acked)
		time.Sleep(time.Hour)
		w.append(acked) // a source sends it again
		begins := w.cluster.Span(part("t/1")).End - 1
		time.Sleep(time.Hour - time.Minute)
		lost, at := w.publish("t/1", "lost")
		forged := w.message("t/1", "forged")
		w.apply(forged)
		w.commit()
		w.cluster.Retain(part("t/1"), begins)
		books, found := w.audit(nil)
		w.same("cut", []seen{{audit.Missing, lost.ID, at}, {audit.Unknown, forged.ID, -1}}, found)
		want := audit.Books{Published: 2, Missing: 1, Undecided: 1, Older: 1, Strangers: 1, Records: 2}
		if diff := cmp.Diff(want, books); diff != "" {
			t.Errorf("books (-want +got):\n%s", diff)
		}
	})
}

func TestOnlyTheRangeIsCompared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var at []time.Time
		var lost []seen
		for i := range 4 {
			at = append(at, time.Now())
			m, offset := w.publish("t/1", "lost")
			lost = append(lost, seen{audit.Missing, m.ID, offset})
			forged := w.message(fmt.Sprintf("t/%d", i), "forged")
			w.apply(forged)
			lost = append(lost, seen{audit.Unknown, forged.ID, -1})
			time.Sleep(20 * time.Minute)
		}
		w.commit()
		for sentence, c := range map[string]struct {
			from, to int // in at; 4 = open
			want     []seen
		}{
			"all":    {0, 4, lost},
			"first":  {0, 1, lost[:2]},
			"middle": {1, 3, lost[2:6]},
			"last":   {3, 4, lost[6:]},
		} {
			_, found := w.audit(func(a *audit.Audit) {
				if c.from > 0 {
					a.Since = at[c.from]
				}
				if c.to < 4 {
					a.Until = at[c.to]
				}
			})
			w.same(sentence, slices.Clone(c.want), found)
		}
		_, found := w.audit(func(a *audit.Audit) { a.Filter = eventtest.Filter(t, "t/2") })
		w.same("one topic", []seen{lost[5]}, found)
		_, found = w.audit(func(a *audit.Audit) { a.Filter = eventtest.Filter(t, "+/2") })
		w.same("a wildcard", []seen{lost[5]}, found)
		_, found = w.audit(func(a *audit.Audit) { a.Filter = eventtest.Filter(t, "u/#") })
		w.same("other topics", nil, found)
	})
}

func TestThePageNamesEveryKind(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range audit.Kinds {
		if !strings.Contains(string(text), "| `"+string(k)+"` |") {
			t.Errorf("docs/audit.md does not explain %s", k)
		}
	}
}

func TestAnAuditThatCannotBeFinishedSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.publish("t/1", "x")
		away := errors.New("the store is away")
		a := audit.Audit{
			Log: w.cluster.Client().Log(), Topics: topics, Parts: parts, SessionParts: 1, DeadParts: 1, Partition: partition, Group: group, Plan: w.rules.ForSink("s"),
			Store: absent{err: away}, Filter: eventtest.Filter(t, "#"), Now: time.Now, Patience: time.Minute,
		}
		began := time.Now()
		if _, err := a.Run(t.Context()); !errors.Is(err, away) || time.Since(began) < a.Patience {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		a.Store, began = absent{err: fault.Fatal(away)}, time.Now()
		if _, err := a.Run(t.Context()); !errors.Is(err, away) || time.Since(began) > 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// Records that go while they are read must not be taken for records that never were.
func TestALogThatIsCutMeanwhileIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 5 {
			w.publish("t/1", "x")
		}
		c := w.cluster.Client()
		c.Hook = func(_ context.Context, call fakelog.Call) fakelog.Verdict {
			if call.Op == fakelog.OpOpen && call.TP == part("t/1") {
				w.cluster.Retain(call.TP, 3)
			}
			return fakelog.Verdict{}
		}
		a := audit.Audit{
			Log: c.Log(), Topics: topics, Parts: parts, SessionParts: 1, DeadParts: 1, Partition: partition, Group: group, Plan: w.rules.ForSink("s"),
			Store: w.store, Filter: eventtest.Filter(t, "#"), Now: time.Now, Patience: time.Minute,
		}
		if _, err := a.Run(t.Context()); !errors.Is(err, pipeline.ErrGap) || !strings.Contains(err.Error(), "begin again") {
			t.Errorf("got %v", err)
		}
	})
}

// absent is a store that cannot be read.
type absent struct {
	sinks.Reader
	err error
}

func (a absent) Topics(context.Context, event.Filter, event.Topic, int) ([]event.Topic, error) {
	return nil, a.err
}
