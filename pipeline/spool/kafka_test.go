package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

var topics = pipeline.Topics{Messages: "mqtt.messages", Sessions: "mqtt.sessions", Dead: "mqtt.dead"}

// kafka is an inner producer behind which the log can be away. A record is in the log some time after it was appended, those of a
// key in their order.
type kafka struct {
	mu      sync.Mutex
	away    bool
	back    chan struct{} // closed when it is there
	closed  bool
	closing chan struct{}
	latency time.Duration
	room    int  // records that may be on their way, 0 = any number
	stuck   bool // it takes nothing
	inside  int
	changed chan struct{}
	log     []pipeline.Outgoing
	lines   map[string]chan *delivery
	wg      sync.WaitGroup
	// poison refuses records for good: at once ("append") or by the receipt ("receipt").
	poison func(pipeline.Outgoing) string
	// taken is told of each record in the log, with the lock held.
	taken func(pipeline.Outgoing)
}

type delivery struct {
	out  pipeline.Outgoing
	done chan struct{}
	err  error
}

func (d *delivery) Done() <-chan struct{} { return d.done }
func (d *delivery) Err() error            { return d.err }

func newKafka(latency time.Duration) *kafka {
	k := &kafka{latency: latency, back: make(chan struct{}), closing: make(chan struct{}), changed: make(chan struct{}), lines: map[string]chan *delivery{}}
	close(k.back)
	return k
}

func (k *kafka) set(away bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if away == k.away {
		return
	}
	if k.away = away; away {
		k.back = make(chan struct{})
	} else {
		close(k.back)
	}
}

// unstick has it take records again, those first that wait.
func (k *kafka) unstick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stuck = false
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *kafka) Append(ctx context.Context, r pipeline.Outgoing) (pipeline.Receipt, error) {
	for {
		k.mu.Lock()
		switch {
		case k.closed:
			k.mu.Unlock()
			return nil, errors.New("the producer is closed")
		case k.poison != nil && k.poison(r) == "append":
			k.mu.Unlock()
			return nil, fault.Poison(errors.New("too large"))
		case !k.stuck && (k.room == 0 || k.inside < k.room):
			d := &delivery{out: r, done: make(chan struct{})}
			k.inside++
			key := r.Topic + "/" + string(r.Key)
			if k.lines[key] == nil {
				line := make(chan *delivery, 1<<20)
				k.lines[key] = line
				k.wg.Go(func() { k.run(line) })
			}
			k.lines[key] <- d
			k.mu.Unlock()
			return d, nil
		}
		changed := k.changed
		k.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (k *kafka) run(line chan *delivery) {
	for d := range line {
		err := k.deliver(d)
		k.mu.Lock()
		if d.err = err; err == nil {
			k.log = append(k.log, d.out)
			if k.taken != nil {
				k.taken(d.out)
			}
		}
		k.inside--
		close(k.changed)
		k.changed = make(chan struct{})
		close(d.done)
		k.mu.Unlock()
	}
}

func (k *kafka) deliver(d *delivery) error {
	timer := time.NewTimer(k.latency)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.closing:
	}
	for {
		k.mu.Lock()
		back, away, poison := k.back, k.away, k.poison
		k.mu.Unlock()
		if poison != nil && poison(d.out) == "receipt" && !away {
			return fault.Poison(errors.New("refused"))
		}
		if !away {
			return nil
		}
		select {
		case <-back:
		case <-k.closing:
			return errors.New("the producer was closed with the record's fate unknown")
		}
	}
}

func (k *kafka) Close(ctx context.Context) error {
	k.mu.Lock()
	k.closed = true
	for _, l := range k.lines {
		close(l)
	}
	k.mu.Unlock()
	drained := make(chan struct{})
	go func() { k.wg.Wait(); close(drained) }()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		close(k.closing)
		<-drained
		return context.Cause(ctx)
	}
}

// records are those in the log.
func (k *kafka) records() []pipeline.Outgoing {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.log)
}

// values are the values in the log, of a topic or of all, in their order.
func (k *kafka) values(topic string) []string {
	var out []string
	for _, o := range k.records() {
		if topic == "" || o.Topic == topic {
			out = append(out, string(o.Value))
		}
	}
	return out
}

// firsts are the values without what came again.
func firsts(values []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(values), func(v string) bool {
		again := seen[v]
		seen[v] = true
		return again
	})
}

// message is a record of messages; those of the same key keep their order.
func message(key, value string) pipeline.Outgoing {
	return record(topics.Messages, "mqtt.message.publish", key, value)
}

func session(value string) pipeline.Outgoing {
	return record(topics.Sessions, "mqtt.session.subscribed", "client", value)
}

func alias(value string) pipeline.Outgoing {
	return record(topics.Messages, "mqtt.message.replayed", "t/1", value)
}

func record(topic, typ, key, value string) pipeline.Outgoing {
	return pipeline.Outgoing{Topic: topic, Wire: event.Wire{
		Key: []byte(key), Value: []byte(value), Time: time.Now().Truncate(time.Microsecond),
		Headers: []event.Header{{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_type", Value: []byte(typ)}},
	}}
}

func numbered(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s%03d", prefix, i))
	}
	return out
}
