package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// contained judges a replay on its way: it goes to nobody but who has subscribed, and whom the message is for. A client that has gone
// may be sent something until the replayer can have heard of it.
func (w *world) contained(to event.ClientID, m pipeline.Outgo) {
	h := w.hist
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.msgs[m.ID]
	if known == nil {
		h.broken("containment: %s is sent %s, which nobody has published", to, m.ID)
		return
	}
	subscribed := slices.ContainsFunc(h.subs, func(s *subscription) bool {
		return s.client == to && s.filter.Match(m.Topic) && w.goes(s, time.Now())
	})
	switch {
	case !subscribed:
		h.broken("containment: %s is sent m%d and has no subscription to %s", to, known.n, m.Topic)
	case !isPubsub(m.Topic) && !isRetained(m.Topic) && !w.addressed(known, to):
		h.broken("containment: %s is sent m%d, which is for another", to, known.n)
	}
}

// goes reports whether a replay for a subscription may go on at a time: until a replayer has dealt with its end, and for as long as one
// may take to learn that it owns the partition no more.
func (w *world) goes(s *subscription, at time.Time) bool {
	zombie := sessionTime + 2*time.Second
	if w.calm {
		zombie = 0
	}
	return s.end.IsZero() || s.heard.IsZero() || at.Before(s.heard.Add(zombie))
}

// isCalm reports whether the plan lets the one replayer alone: then it is known what it has dealt with.
func (p *plan) isCalm() bool {
	return p.readers == 1 && !slices.ContainsFunc(p.actions, func(a action) bool {
		return !a.must && strings.HasPrefix(a.text, "replayer") || a.text == readers+" rebalances"
	})
}

// pubsubLoss: what was published to a filter since a client first subscribed to it, and the client has not acknowledged, comes to it
// when it subscribes once more and stays long enough. A message that takes longer to the log than positions stay behind is late
// for them.
func (w *world) pubsubLoss(broken func(string, ...any)) {
	h := w.hist
	if !w.plan.pubsub {
		return
	}
	trail := max(w.plan.replay.Settle, 2*w.plan.replay.ClockSkew)
	w.lasting(func(s *subscription, end time.Time) {
		for _, m := range h.order {
			switch {
			case !isPubsub(m.Topic), m.confirmed.IsZero(), !w.ready(m, s.client).Before(s.begin), !s.filter.Match(m.Topic):
				continue
			case !m.taken.After(s.owed) && w.plan.first != pipeline.FirstAll, m.expired(end.Add(skew)), h.isDead(m):
				continue
			case m.logged.Sub(m.taken) > trail-skew:
				continue
			}
			if had := m.had[s.client]; !had.IsZero() && had.Before(end) || h.came(m, s.client, s.begin, end) {
				continue
			}
			if !w.plan.tells && h.came(m, s.client, h.begin, s.begin) {
				continue // that the broker took it is what counts
			}
			broken("loss: m%d, published at %s, never came to %s, who subscribed %s at %s, for the first time at %s",
				m.n, h.since(m.taken), s.client, s.filter, h.since(s.begin), h.since(s.owed))
		}
	})
}

// retainedLoss: a client that subscribes and stays has of each topic what was retained when it came, or what came after.
func (w *world) retainedLoss(broken func(string, ...any)) {
	h := w.hist
	if !w.plan.retains {
		return
	}
	w.lasting(func(s *subscription, end time.Time) {
		last := make(map[event.Topic]*message)
		for _, m := range h.order {
			if !isRetained(m.Topic) || m.logged.IsZero() || !s.filter.Match(m.Topic) {
				continue
			}
			l := last[m.Topic]
			ready := !m.confirmed.IsZero() && w.ready(m, s.client).Before(s.begin)
			if (ready || len(m.Payload) == 0) && (l == nil || m.ID.Compare(l.ID) > 0) {
				last[m.Topic] = m
			}
		}
		for t, l := range last {
			got := slices.ContainsFunc(h.got, func(d delivery) bool {
				return d.client == s.client && d.m.Topic == t && d.m.ID.Compare(l.ID) >= 0 && !d.at.Before(s.begin) && !d.at.After(end)
			})
			for _, m := range h.order { // what the broker drops comes to nobody, and hides what was before it
				got = got || m.Topic == t && m.ID.Compare(l.ID) >= 0 && h.dropped[clientMessage{s.client, m.ID}]
			}
			if !got && len(l.Payload) > 0 {
				broken("loss: m%d, retained since %s, never came to %s, who subscribed %s at %s", l.n, h.since(l.confirmed), s.client, s.filter, h.since(s.begin))
			}
		}
	})
}
