package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/restante/restante/event"
)

// enough is how long a client must stay, with everything well, to have got what waits for it.
const enough = 25 * time.Second

// verdict judges a history when all is at rest. It returns every promise that was broken.
func (w *world) verdict() []string {
	h := w.hist
	bad := slices.Clone(h.bad)
	broken := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	w.loss(broken)
	w.pubsubLoss(broken)
	w.retainedLoss(broken)
	w.ghosts(broken)
	w.order(broken)
	w.books(broken)
	return bad
}

func (h *history) since(t time.Time) string { return fmt.Sprintf("%.3f", t.Sub(h.begin).Seconds()) }

func (w *world) addressed(m *message, c event.ClientID) bool {
	return len(w.rules.ForSink(sink)(event.Acked{Head: event.Head{ID: m.ID}, Topic: m.Topic, Client: c, Message: m.ID}).Ops) > 0
}

// ready is from when on a message must be in a replay for a client: when its publisher has its acknowledgement. While an ingest
// spools, what it holds is in no replay, but for subscribes that came through it too: they stand behind it.
func (w *world) ready(m *message, c event.ClientID) time.Time {
	if w.plan.spool > 0 && w.broker.box(m.Sender) != w.broker.box(c) && m.logged.After(m.confirmed) {
		return m.logged
	}
	return m.confirmed
}

// lasting are the subscriptions that stay long enough when all is well, and their ends.
func (w *world) lasting(each func(s *subscription, end time.Time)) {
	h := w.hist
	healed := h.begin.Add(chaos)
	for _, s := range h.subs {
		end := s.end
		if end.IsZero() {
			end = h.begin.Add(rest)
		}
		if !s.replaced.IsZero() {
			end = s.replaced
		}
		from := s.begin
		if healed.After(from) {
			from = healed
		}
		if end.Sub(from) >= enough && s.qos > 0 {
			each(s, end)
		}
	}
}

// came reports whether a client got a message between two times.
func (h *history) came(m *message, c event.ClientID, from, to time.Time) bool {
	return slices.ContainsFunc(h.got, func(d delivery) bool {
		return d.m == m && d.client == c && !d.at.Before(from) && !d.at.After(to)
	})
}

// isDead reports whether the message is in the dead letters.
func (h *history) isDead(m *message) bool {
	_, dead := h.dead[m.at.TP][m.at.Offset]
	return dead
}

// loss: what was confirmed before a subscribe, and is acknowledged by nobody, comes to a client that stays long enough.
func (w *world) loss(broken func(string, ...any)) {
	h := w.hist
	w.lasting(func(s *subscription, end time.Time) {
		for _, m := range h.order {
			switch {
			case m.QoS == 0, m.confirmed.IsZero(), !w.ready(m, s.client).Before(s.begin), !s.filter.Match(m.Topic), !w.addressed(m, s.client):
				continue
			case !m.acked.IsZero() && m.acked.Before(end), m.expired(end.Add(skew)), h.isDead(m):
				continue
			}
			if !h.came(m, s.client, s.begin, end) {
				broken("loss: m%d, confirmed at %s, never came to %s, who subscribed %s at %s", m.n, h.since(m.confirmed), s.client, s.filter, h.since(s.begin))
			}
		}
	})
}

// ghosts: nothing is replayed for a subscribe that began after its ack was in the log. A delivery does not say for which subscribe
// it is; any that was made before the ack may be the one, for as long as its replay may go on. A round that could not see the whole
// tail (the writers lag, DESIGN §6) sees not all acks.
func (w *world) ghosts(broken func(string, ...any)) {
	h := w.hist
	for _, d := range h.got {
		if !d.replay || d.m.acked.IsZero() || !d.m.acked.Before(d.at) {
			continue
		}
		excused := slices.ContainsFunc(h.subs, func(s *subscription) bool {
			return s.client == d.client && s.qos > 0 && s.filter.Match(d.m.Topic) && !s.begin.After(d.m.acked) && w.goes(s, d.at)
		})
		// A copy of the publish that comes to the log long after the ack is not known to be gone: the look-back is for moments, by the
		// time of the events, which tells nothing of those that waited in a spool, and little where clocks are apart.
		late := 1500 * time.Millisecond
		if len(w.plan.ahead) > 0 || w.plan.spool > 0 {
			late = 0
		}
		excused = excused || d.m.again.Sub(d.m.acked) > late
		if !excused && (w.complete() || d.at.Sub(h.begin) > back) {
			broken("ghost: m%d came to %s at %s, but its ack was in the log at %s", d.m.n, d.client, h.since(d.at), h.since(d.m.acked))
		}
	}
}

// complete reports whether all rounds saw the whole tail.
func (w *world) complete() bool { return w.hist.rounds == 0 }

// order: of one publisher and topic, first replays within a connection come in the order of their publishing. What was sent before its
// subscribe is in the log is of a replay for the connection before.
func (w *world) order(broken func(string, ...any)) {
	h := w.hist
	type line struct {
		client event.ClientID
		conn   int
		from   event.ClientID
		topic  event.Topic
	}
	subs := make(map[line]int)
	known := make(map[line]time.Time)
	last := make(map[line]*message)
	seen := make(map[line]map[*message]bool)
	for _, d := range h.got {
		k := line{d.client, d.conn, d.m.Sender, d.m.Topic}
		if _, ok := subs[k]; !ok {
			for _, s := range h.subs {
				if s.client == d.client && s.conn == d.conn && s.filter.Match(d.m.Topic) {
					subs[k]++
					known[k] = s.logged
				}
			}
		}
		if subs[k] > 1 {
			continue // two replays of one topic may take turns
		}
		if seen[k] == nil {
			seen[k] = make(map[*message]bool)
		}
		if seen[k][d.m] || h.held[clientMessage{d.client, d.m.ID}] || isPubsub(d.m.Topic) && w.has(d) {
			continue // a replay that the broker was told to hold back comes when it is sent again
		}
		seen[k][d.m] = true
		if !d.replay || known[k].IsZero() || d.sent.Before(known[k]) {
			continue
		}
		if l := last[k]; l != nil && l.n > d.m.n {
			broken("order: m%d came to %s after m%d, both from %s to %s", d.m.n, d.client, l.n, d.m.Sender, d.m.Topic)
		}
		last[k] = d.m
	}
}

// has reports whether the client had acknowledged what it gets: positions stay behind what is acknowledged.
func (w *world) has(d delivery) bool {
	if !w.plan.tells { // that the broker took it is what counts
		return slices.ContainsFunc(w.hist.got, func(o delivery) bool { return o.m == d.m && o.client == d.client && o.replay && o.at.Before(d.at) })
	}
	had := d.m.had[d.client]
	return !had.IsZero() && had.Before(d.at)
}
