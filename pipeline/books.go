package pipeline

import (
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// The books of a writer: what became of each publish and each ack at its sink. A record is booked when it is committed, so that what is
// read again by the next owner is booked once. The sums are told in docs/guarantees.md.

// fate is what became of a record of a message.
type fate byte

const (
	fateNone fate = iota // it is neither a publish nor an ack

	fateStored     // of a publish: it is in the store
	fateHistory    // it is in the store, and waits for nobody
	fateElided     // it was acknowledged before it was written
	fateOvertaken  // its ack came before it
	fateExpired    // it had expired when it was to be written
	fateRejected   // the store can never take it: it is in the dead letters
	fateRepeated   // it had come before
	fateQoS0       // the rules store nothing of QoS 0
	fateUnselected // no rule of the sink stores it

	effectDeleted    // of an ack: the message waits no more
	effectElided     // it met its publish before that was written
	effectRepeated   // another one came before
	effectUnstored   // the message never was in the store
	effectIgnored    // the rules say that it does not count
	effectUnselected // no rule of the sink deletes by it

	fates
)

// fateNames and effectNames are the values of labels.
var (
	fateNames = map[fate]string{
		fateStored: "stored", fateHistory: "history", fateElided: "elided", fateOvertaken: "overtaken", fateExpired: "expired",
		fateRejected: "rejected", fateRepeated: "repeated", fateQoS0: SkipQoS0, fateUnselected: "unselected",
	}
	effectNames = map[fate]string{
		effectDeleted: "deleted", effectElided: "elided", effectRepeated: "repeated", effectUnstored: "unstored",
		effectIgnored: "ignored", effectUnselected: "unselected",
	}
)

// note says of the record that was added last what it is, where its ops do not tell.
func (h *hold) note(e event.Event, p Plan) {
	r := &h.recs[len(h.recs)-1]
	if r.fate != fateNone {
		return
	}
	_, published := e.(event.Published)
	_, acked := e.(event.Acked)
	switch {
	case published && p.Skipped == SkipQoS0:
		r.fate = fateQoS0
	case published:
		r.fate = fateUnselected
	case acked && p.Skipped != "":
		r.fate = effectIgnored
	case acked:
		r.fate = effectUnselected
	}
}

// published is the fate of a publish with what is known of its message, as long as nothing else comes of it. held says that a copy is held.
func (h *hold) published(k msgKey, state memState, held bool) fate {
	switch {
	case state == memAckedFirst:
		h.mem.Put(k, memAcked)
		return fateOvertaken
	case held, state != 0:
		return fateRepeated
	}
	return fateStored
}

// acked notes that a message was acknowledged, and is the effect of that.
func (h *hold) acked(k msgKey, elided bool) fate {
	_, held := h.puts[k]
	before := h.mem.Get(k)
	switch {
	case before.acked(): // what it elides is a copy, whose deletion is held
		h.mem.Put(k, before)
		return effectRepeated
	case elided:
		h.mem.Put(k, memAcked)
		return effectElided
	case held, before == memWritten:
		h.mem.Put(k, memAcked)
	default:
		h.mem.Put(k, memAckedFirst)
	}
	return effectDeleted
}

// settle is what became of a record, now that it is done. at is when what it writes was in the store.
func (h *hold) settle(r *held, at time.Time) fate {
	switch r.fate { //nolint:exhaustive // the others are settled
	case fateStored:
		if r.dead != nil {
			h.unstored.Put(r.key, true)
			return fateRejected
		}
		history, expired := true, false
		for _, o := range r.ops {
			m, ok := o.(sinks.PutMessage)
			switch {
			case !ok:
			case !m.Expires.IsZero() && !m.Expires.After(at):
				expired = true
			case !m.History:
				history = false
			}
		}
		switch {
		case !expired && !history:
		case h.mem.Get(r.key).acked(): // what it was written for is over, whether it was written or not
		case expired:
			h.unstored.Put(r.key, true)
			return fateExpired
		default:
			return fateHistory
		}
	case effectDeleted:
		if h.unstored.Get(r.key) {
			return effectUnstored
		}
	}
	return r.fate
}

// settle books the first n held records, which are committed.
func (w *Worker) settle(n int) {
	var of [fates]int
	publish := slowest{to: w.Metrics.PersistLatency.WithLabelValues(w.Storing.Sink, eventPublish)}
	ack := slowest{to: w.Metrics.PersistLatency.WithLabelValues(w.Storing.Sink, eventAck)}
	bytes := 0
	for i := range w.hold.recs[:n] {
		r := &w.hold.recs[i]
		f := w.hold.settle(r, w.wroteAt)
		of[f]++
		switch f { //nolint:exhaustive // the others change nothing in the store
		case fateStored, fateHistory:
			publish.observe(max(0, w.wroteAt.Sub(r.rec.Time).Seconds()), r.key.id)
		case effectDeleted:
			ack.observe(max(0, w.wroteAt.Sub(r.rec.Time).Seconds()), r.key.id)
		}
		bytes += len(r.rec.Key) + len(r.rec.Value)
	}
	publish.end()
	ack.end()
	w.Metrics.BatchBytes.WithLabelValues(w.Storing.Sink).Observe(float64(bytes))
	for f, name := range fateNames {
		w.Metrics.Messages.WithLabelValues(w.Storing.Sink, name).Add(float64(of[f]))
	}
	for f, name := range effectNames {
		w.Metrics.Acks.WithLabelValues(w.Storing.Sink, name).Add(float64(of[f]))
	}
	w.Metrics.Expired.WithLabelValues(w.Storing.Sink).Add(float64(of[fateExpired]))
}
