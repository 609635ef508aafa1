package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
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
	all = append(all, pipeline.Rule{Action: pipeline.SaveOfflineMessages, Topic: eventtest.Filter(t, "t/#"), Sink: "s", TTL: ttl, Wildcards: &yes}.Expand()...)
	all = append(all, pipeline.Rule{Hook: pipeline.MessagePublish, Action: pipeline.OnMessageStore, Topic: eventtest.Filter(t, "h/#"), Sink: "s"})
	for _, a := range []pipeline.Action{pipeline.OnMessageRetain, pipeline.OnRetainDelete} {
		all = append(all, pipeline.Rule{Hook: pipeline.MessagePublish, Action: a, Topic: eventtest.Filter(t, "r/#"), Sink: "s", TTL: ttl})
	}
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
	return event.Published{Head: event.Head{ID: w.minter.Mint(), At: time.Now()}, Topic: eventtest.Topic(w.t, to), QoS: 1, Payload: []byte(payload)}
}

// publish puts a message into the log, and gives it back with its offset.
func (w *world) publish(to, payload string) (event.Published, int64) {
	w.t.Helper()
	m := w.message(to, payload)
	at := w.cluster.Span(part(to)).End
	w.append(m)
	return m, at
}

// retain puts a retained message into the log, one that removes it when the payload is empty.
func (w *world) retain(to, payload string) (event.Published, int64) {
	w.t.Helper()
	m := w.message(to, payload)
	m.Retain = true
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
		Store: slow{w.store, 0}, Retained: true, Filter: eventtest.Filter(w.t, "#"), Now: time.Now, Patience: time.Minute,
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
