package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// publisher is a replayer's way to the broker: direct delivery into one session.
type publisher struct {
	in *incarnation
}

var _ pipeline.Publisher = (*publisher)(nil)

func (p *publisher) Publish(ctx context.Context, to event.ClientID, m pipeline.Outgo) (pipeline.Outcome, error) {
	w := p.in.w
	key := fmt.Sprintf("%s %s %s %d", opPublish, to, m.ID, m.Remaining)
	v := w.step.park(ctx, &call{in: p.in, op: opPublish, key: key})
	if v.Err != nil && !v.Done {
		return pipeline.Outcome{}, v.Err
	}
	b := w.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	w.contained(to, m)
	if !m.Expires.IsZero() && !m.Expires.After(time.Now()) {
		w.count(seenExpired)
		return pipeline.Outcome{}, pipeline.ErrExpired
	}
	s := b.session(to)
	qos, ok := s.wants(m.Topic)
	if !s.online || !ok {
		w.hist.note("%s is not there for %s", to, w.hist.name(m.ID))
		return pipeline.Outcome{NoSubscriber: true}, v.Err
	}
	if w.plan.echoes {
		b.echo(to, m)
	}
	if w.plan.renames && !m.Retained { // for those nobody waits: see mqtt.Publisher
		b.rename(to, m)
		return pipeline.Outcome{}, v.Err
	}
	b.deliver(s, handing{id: m.ID, topic: m.Topic, qos: min(qos, m.QoS), replay: true})
	return pipeline.Outcome{}, v.Err
}

// echo lets a replay come back as what it is to the broker: a publish. Half of the sources know its sender, the others its marks.
func (b *broker) echo(to event.ClientID, m pipeline.Outgo) {
	b.replayed++
	e := event.Published{Head: b.head(to), Topic: m.Topic, QoS: m.QoS, Payload: m.Payload}
	e.ID = b.mint(b.node(to))
	e.Properties.User = secret.Properties(to, m.Topic.String(), m)
	if b.replayed%2 == 0 {
		e.Sender = ownPrefix + "replayer"
	}
	b.box(to).put(e)
}

// isReplay is what sources ask of a publish.
func isReplay(e event.Published) bool {
	_, _, ours := secret.Verify(e.Topic.String(), e.Payload, e.Properties.User)
	return ours
}

var secret = func() mqtt.Secret {
	s, err := mqtt.NewSecret([]byte("a key of the simulation"))
	if err != nil {
		panic(err)
	}
	return s
}()

// rename gives a replay an id of the broker's own, and delivers it when an ingest, any of them, has confirmed the alias. b.mu is held,
// but while it waits for that.
func (b *broker) rename(to event.ClientID, m pipeline.Outgo) {
	alias := event.Replayed{Head: b.head(to), Topic: m.Topic, Client: to, Message: m.ID, BrokerID: b.mint(b.node(to))}
	b.w.hist.renamed(alias.BrokerID, m.ID)
	l := &letter{answered: make(chan struct{}), e: alias}
	b.box(event.ClientID(m.ID.String())).add(l)
	b.mu.Unlock()
	defer b.mu.Lock()
	t := time.NewTimer(2 * time.Second) // as long as a broker waits
	defer t.Stop()
	select {
	case <-l.answered:
	case <-t.C:
		b.mu.Lock()
		defer b.mu.Unlock()
		l.late = true
		b.w.hist.holdsBack(l.e)
	}
}
