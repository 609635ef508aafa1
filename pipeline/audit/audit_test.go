package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/audit"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var topics = pipeline.Topics{Messages: "mqtt.messages", Sessions: "mqtt.sessions", Dead: "mqtt.dead"}

const (
	group = "restante.writer.s"
	parts = 3
	ttl   = 2 * time.Hour
)

var quiet = slog.New(slog.DiscardHandler)

// world is a log and a store.
type world struct {
	t       *testing.T
	cluster *fakelog.Cluster
	store   *memory.Store
	rules   *pipeline.Rules
	minter  *event.Minter
	metrics *pipeline.Metrics
}

func newWorld(t *testing.T) *world {
	t.Helper()
	yes := true
	var all []pipeline.Rule
	all = append(all, pipeline.Rule{Action: pipeline.SaveOfflineMessages, Topic: filter(t, "t/#"), Sink: "s", TTL: ttl, Wildcards: &yes}.Expand()...)
	all = append(all, pipeline.Rule{Hook: pipeline.MessagePublish, Action: pipeline.OnMessageStore, Topic: filter(t, "h/#"), Sink: "s"})
	rules, err := pipeline.Compile(all)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		t: t, store: &memory.Store{}, rules: rules, minter: &event.Minter{Node: 1, Now: time.Now},
		cluster: fakelog.New(fakelog.Config{Partitions: map[string]int{topics.Messages: parts, topics.Sessions: 1, topics.Dead: 1}}),
		metrics: pipeline.NewMetrics(prometheus.NewRegistry(), []string{group}, []string{"s"}),
	}
}

func filter(t *testing.T, s string) event.Filter {
	t.Helper()
	f, err := event.ParseFilter(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func topic(t *testing.T, s string) event.Topic {
	t.Helper()
	out, err := event.ParseTopic(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func partition(key string) int { return fakelog.Partition(key, parts) }

// part is the partition of a topic in the log.
func part(topic string) pipeline.TP {
	return pipeline.TP{Topic: topics.Messages, Part: partition(topic)}
}

func (w *world) append(e event.Event) {
	r := e.Routes()[0]
	w.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Encode(e, r, time.Now())})
}

func (w *world) message(to, payload string) event.Published {
	w.t.Helper()
	return event.Published{Head: event.Head{ID: w.minter.Mint(), At: time.Now()}, Topic: topic(w.t, to), QoS: 1, Payload: []byte(payload)}
}

// publish puts a message into the log, and gives it back with its offset.
func (w *world) publish(to, payload string) (event.Published, int64) {
	w.t.Helper()
	m := w.message(to, payload)
	at := w.cluster.Span(part(to)).End
	w.append(m)
	return m, at
}

func (w *world) ack(m event.Published) int64 {
	at := w.cluster.Span(part(m.Topic.String())).End
	w.append(event.Acked{Head: event.Head{ID: w.minter.Mint(), At: time.Now()}, Topic: m.Topic, Client: "device", Message: m.ID})
	return at
}

// apply does to the store what an event asks of it.
func (w *world) apply(e event.Event) {
	w.t.Helper()
	if err := w.store.Apply(w.t.Context(), w.rules.ForSink("s")(e).Ops); err != nil {
		w.t.Fatal(err)
	}
}

// commit commits all that is in the log now.
func (w *world) commit() {
	for n := range parts {
		tp := pipeline.TP{Topic: topics.Messages, Part: n}
		w.cluster.Reset(group, tp, w.cluster.Span(tp).End)
	}
}

func (w *world) deadLetters(c *fakelog.Client) *pipeline.DeadLetters {
	return &pipeline.DeadLetters{
		Producer: c.Producer(), Topic: topics.Dead, Group: group, Component: "writer", Backoff: pipeline.DefaultBackoff, Metrics: w.metrics, Log: quiet,
	}
}

func (w *world) bury(to string, offset int64) {
	w.t.Helper()
	d := w.deadLetters(w.cluster.Client())
	r := w.cluster.Records(part(to))[offset]
	if err := errors.Join(d.Bury(w.t.Context(), r, pipeline.ReasonRejected, errors.New("too long")), d.Producer.Close(w.t.Context())); err != nil {
		w.t.Fatal(err)
	}
}

// slow reads the store slowly, so that the writer goes on meanwhile, and fails now and then.
type slow struct {
	sinks.Reader
	most time.Duration
}

var errNotNow = errors.New("not now")

func (s slow) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	if s.most > 0 {
		time.Sleep(rand.N(s.most))
		if rand.N(3) == 0 {
			return nil, errNotNow
		}
	}
	return s.Reader.Messages(ctx, q)
}

// audit runs an audit, changed as the test likes.
func (w *world) audit(change func(*audit.Audit)) (audit.Books, []audit.Difference) {
	w.t.Helper()
	var found []audit.Difference
	a := &audit.Audit{
		Log: w.cluster.Client().Log(), Topics: topics, Parts: parts, SessionParts: 1, DeadParts: 1, Partition: partition, Group: group, Plan: w.rules.ForSink("s"),
		Store: slow{w.store, 0}, Filter: filter(w.t, "#"), Now: time.Now, Patience: time.Minute,
		Found: func(d audit.Difference) error {
			found = append(found, d)
			return nil
		},
	}
	if change != nil {
		change(a)
	}
	books, err := a.Run(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if sum := books.Stored + books.Acked + books.Expired + books.Refused + books.InFlight + books.Missing + books.Undecided; sum != books.Published {
		w.t.Errorf("the books do not balance: %+v", books)
	}
	return books, found
}

// seen is a difference without its sentence.
type seen struct {
	Kind    audit.Kind
	Message event.ID
	Offset  int64
}

func (w *world) same(what string, want []seen, found []audit.Difference) {
	w.t.Helper()
	got := make([]seen, len(found))
	for i, d := range found {
		got[i] = seen{d.Kind, d.Message, d.Offset}
		if d.Says == "" || !d.Message.IsZero() && d.TP != part(d.Topic.String()) {
			w.t.Errorf("%s: a difference does not say where or what: %+v", what, d)
		}
	}
	order := func(a, b seen) int {
		return slices.Compare([]string{string(a.Kind), a.Message.String(), fmt.Sprint(a.Offset)}, []string{string(b.Kind), b.Message.String(), fmt.Sprint(b.Offset)})
	}
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(event.ID{})); diff != "" {
		w.t.Errorf("%s: differences (-want +got):\n%s", what, diff)
	}
}

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
		_, found := w.audit(func(a *audit.Audit) { a.Filter = filter(t, "t/2") })
		w.same("one topic", []seen{lost[5]}, found)
		_, found = w.audit(func(a *audit.Audit) { a.Filter = filter(t, "+/2") })
		w.same("a wildcard", []seen{lost[5]}, found)
		_, found = w.audit(func(a *audit.Audit) { a.Filter = filter(t, "u/#") })
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
			Store: absent{err: away}, Filter: filter(t, "#"), Now: time.Now, Patience: time.Minute,
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
			Store: w.store, Filter: filter(t, "#"), Now: time.Now, Patience: time.Minute,
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

// balky is a store that fails now and then, is slow, and takes no poison.
type balky struct {
	*memory.Store
	rnd *rand.Rand
	mu  sync.Mutex
}

func (b *balky) Apply(ctx context.Context, ops []sinks.Op) error {
	b.mu.Lock()
	wait, fails := time.Duration(b.rnd.IntN(2000))*time.Millisecond, b.rnd.IntN(4) == 0
	b.mu.Unlock()
	if err := pipeline.Sleep(ctx, wait); err != nil {
		return err
	}
	failed := map[int]error{}
	var good []sinks.Op
	for i, o := range ops {
		if m, ok := o.(sinks.PutMessage); ok && len(m.Payload) > 20 {
			failed[i] = fault.Poison(errors.New("too long"))
			continue
		}
		if fails && i%2 == 0 {
			failed[i] = errNotNow
			continue
		}
		good = append(good, o)
	}
	if err := b.Store.Apply(ctx, good); err != nil {
		return err
	}
	if len(failed) > 0 {
		return &sinks.ApplyError{Failed: failed}
	}
	return nil
}

// write runs a writer until stop is called.
func (w *world) write(store sinks.Store) (stop func()) {
	c := w.cluster.Client()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { // ends with ctx
		dead := w.deadLetters(c)
		storing := &pipeline.Storing{Sink: "s", Store: store, Backoff: pipeline.DefaultBackoff, Metrics: w.metrics, Log: quiet, Now: time.Now}
		err := pipeline.Consume(ctx, context.Background(), c.Group(group, topics.Messages), quiet,
			func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
				k := &pipeline.Worker{
					TP: tp, Kind: event.Messages, From: from, Group: group, Generation: g, Reader: c.Log(), Plan: w.rules.ForSink("s"), Storing: storing,
					Dead: dead, Metrics: w.metrics, Log: quiet, Now: time.Now,
					Limits: pipeline.Limits{
						Hold: time.Second, Records: 100, Bytes: 1 << 20, Fetch: 50, Drain: time.Minute, Session: 30 * time.Second, Memory: 1000, Recall: time.Minute,
					},
				}
				return k.Run(ctx, work)
			})
		done <- errors.Join(err, dead.Producer.Close(context.Background()))
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// Beside a writer on a store that is slow and fails, with acks, duplicates, expiry and poison, no difference is seen; and of those that
// are made in the end, each is.
func TestARunningPipelineHasNoDifferencesAndPlantedOnesAreFound(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				w := newWorld(t)
				stop := w.write(&balky{Store: w.store, rnd: rand.New(rand.NewPCG(seed, 2))})
				var published []event.Published
				acked := map[event.ID]int64{}
				offsets := map[event.ID]int64{}
				over := make(chan struct{})
				go func() { // ends by itself
					defer close(over)
					for range 200 {
						switch n := rnd.IntN(20); {
						case n < 9 || len(published) == 0:
							payload := fmt.Sprint("message ", len(published))
							if rnd.IntN(15) == 0 {
								payload += " that is too long for the store"
							}
							m, at := w.publish(fmt.Sprintf("t/%d", rnd.IntN(6)), payload)
							published, offsets[m.ID] = append(published, m), at
						case n < 15:
							m := published[rnd.IntN(len(published))]
							at := w.ack(m)
							if _, twice := acked[m.ID]; !twice {
								acked[m.ID] = at
							}
						case n == 15:
							w.append(published[rnd.IntN(len(published))])
						default:
							time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
						}
					}
				}()
				for busy := true; busy; {
					select {
					case <-over:
						busy = false
					case <-time.After(500 * time.Millisecond):
						_, found := w.audit(func(a *audit.Audit) { a.Store = slow{w.store, 6 * time.Second} })
						w.same("meanwhile", nil, found)
					}
				}
				time.Sleep(time.Minute)
				_, found := w.audit(nil)
				w.same("in the end", nil, found)
				stop()

				damaged := &memory.Store{}
				var want []seen
				for _, m := range published {
					_, isAcked := acked[m.ID]
					long := len(m.Payload) > 20
					switch n := rnd.IntN(6); {
					case n == 0 && !isAcked && !long: // not restored
						want = append(want, seen{audit.Missing, m.ID, offsets[m.ID]})
						continue
					case n == 1 && isAcked:
						want = append(want, seen{audit.Undeleted, m.ID, acked[m.ID]})
					case n == 2 && !isAcked:
						m.Payload = []byte("another")
						want = append(want, seen{audit.Differs, m.ID, offsets[m.ID]})
					case isAcked, long:
						continue
					}
					if err := damaged.Apply(t.Context(), w.rules.ForSink("s")(m).Ops); err != nil {
						t.Fatal(err)
					}
				}
				w.store = damaged
				forged := w.message("t/1", "forged")
				w.apply(forged)
				want = append(want, seen{audit.Unknown, forged.ID, -1})
				_, found = w.audit(nil)
				w.same("damaged", want, found)
			})
		})
	}
}
