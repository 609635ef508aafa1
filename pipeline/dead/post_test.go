package dead_test

import (
	"errors"
	"log/slog"
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
	"github.com/restante/restante/pipeline/dead"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var topics = pipeline.Topics{Messages: "mqtt.messages", Sessions: "mqtt.sessions", Dead: "mqtt.dead"}

const (
	parts  = 2
	writer = "restante.writer.s"
)

// post is a cluster with letters in it.
type post struct {
	t       *testing.T
	cluster *fakelog.Cluster
	minter  *event.Minter
}

func newPost(t *testing.T) *post {
	t.Helper()
	return &post{
		t:       t,
		cluster: fakelog.New(fakelog.Config{Partitions: map[string]int{topics.Messages: 3, topics.Sessions: 2, topics.Dead: parts}}),
		minter:  &event.Minter{Node: 1, Now: time.Now},
	}
}

// publish is a publish as ingest has it in the log now.
func (p *post) publish(topic, payload string) event.Wire {
	p.t.Helper()
	e := event.Published{Head: event.Head{ID: p.minter.Mint(), Source: "test", At: time.Now()}, Topic: eventtest.Topic(p.t, topic), Sender: "sender", QoS: 1, Payload: []byte(payload)}
	return event.Encode(e, e.Routes()[0], time.Now())
}

func (p *post) subscribe(client, filter string) event.Wire {
	p.t.Helper()
	e := event.Subscribed{
		Head: event.Head{ID: p.minter.Mint(), Source: "test", At: time.Now()}, Client: event.ClientID(client), Filter: eventtest.Filter(p.t, filter), QoS: 1,
	}
	return event.Encode(e, e.Routes()[0], time.Now())
}

// bury buries a record of a topic at a place, as a group does that cannot use it.
func (p *post) bury(group, topic string, offset int64, w event.Wire, reason pipeline.Reason) {
	p.t.Helper()
	producer := p.cluster.Client().Producer()
	d := pipeline.DeadLetters{
		Producer: producer, Topic: topics.Dead, Group: group, Component: "writer", Backoff: pipeline.DefaultBackoff,
		Metrics: pipeline.NewMetrics(prometheus.NewRegistry(), []string{group}, []string{"s"}), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	rec := pipeline.Record{TP: pipeline.TP{Topic: topic, Part: 1}, Offset: offset, Wire: w}
	if err := errors.Join(d.Bury(p.t.Context(), rec, reason, errors.New("too long")), producer.Close(p.t.Context())); err != nil {
		p.t.Fatal(err)
	}
}

// oversize is the letter that ingest writes of a publish over its limit.
func (p *post) oversize(w event.Wire) {
	w.Headers = pipeline.Obituary{
		Reason: pipeline.ReasonOversize, Cause: "too large", Topic: topics.Messages, Offset: pipeline.NoOffset, By: pipeline.ByIngest,
	}.Append(w.Headers)
	p.cluster.Put(pipeline.Outgoing{Topic: topics.Dead, Wire: w})
}

func (p *post) open(c *fakelog.Client) *dead.Box {
	p.t.Helper()
	b, err := dead.Office{Log: c.Log(), Topics: topics, Parts: parts, Patience: time.Minute}.Open(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// redrive runs a redrive by a new client.
func (p *post) redrive(r dead.Redrive) dead.Tally {
	p.t.Helper()
	tally, err := p.try(p.cluster.Client(), r)
	if err != nil {
		p.t.Fatal(err)
	}
	return tally
}

func (p *post) try(c *fakelog.Client, r dead.Redrive) (dead.Tally, error) {
	p.t.Helper()
	r.Producer, r.Now = c.Producer(), time.Now
	if r.MaxPayload == 0 {
		r.MaxPayload = 1 << 20
	}
	tally, err := r.Run(p.t.Context(), p.t.Context(), p.open(p.cluster.Client()))
	return tally, errors.Join(err, r.Producer.Close(p.t.Context()))
}

func (p *post) drop(d dead.Drop) (dead.Tally, error) {
	p.t.Helper()
	d.Producer, d.Now = p.cluster.Client().Producer(), time.Now
	tally, err := d.Run(p.t.Context(), p.t.Context(), p.open(p.cluster.Client()))
	return tally, errors.Join(err, d.Producer.Close(p.t.Context()))
}

// list are the letters that a filter selects.
func (p *post) list(f dead.Filter) []dead.Letter {
	p.t.Helper()
	var all []dead.Letter
	if err := p.open(p.cluster.Client()).Each(p.t.Context(), f, func(l dead.Letter) error {
		all = append(all, l)
		return nil
	}); err != nil {
		p.t.Fatal(err)
	}
	return all
}

// states counts letters by what has become of them.
func (p *post) states() map[dead.State]int {
	p.t.Helper()
	out := map[dead.State]int{}
	for _, l := range p.list(dead.Filter{}) {
		out[l.State]++
	}
	return out
}

// records are the records of a topic.
func (p *post) records(topic string, n int) []event.Wire {
	var out []event.Wire
	for i := range n {
		for _, r := range p.cluster.Records(pipeline.TP{Topic: topic, Part: i}) {
			out = append(out, r.Wire)
		}
	}
	return out
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
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
