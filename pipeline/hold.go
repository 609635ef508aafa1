package pipeline

import (
	"hash/maphash"
	"slices"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// held is one record between its fetch and its commit.
type held struct {
	rec  *Record   // in the slice of its fetch
	at   time.Time // of the fetch
	ops  []sinks.Op
	size int
	dead error // why the record goes to the dead letters, nil = it does not

	key  msgKey // of the message that it publishes or acknowledges
	put  bool   // there is a PutMessage, and it stands
	prev int64  // sequence number of the record with the copy before; none when that is not held
	fate fate   // for the books
}

// hold keeps the fetched and uncommitted records of one partition, in order, and elides what annihilates. It belongs to one
// goroutine.
type hold struct {
	recs  []held
	first int64 // sequence number of recs[0]
	bytes int
	usual int // how many records are likely to come before the next flush
	// puts finds, by message, the last of the held records whose PutMessage of it stands; prev leads to the copies before.
	puts map[msgKey]int64
	mem  Recent[msgKey, memState] // written and acked messages
	// unstored are messages that were not written because they had expired, or were rejected, before any ack.
	unstored Recent[msgKey, bool]
	mark     mark
	skew     time.Duration

	elided, duplicates int // since the last look
	shown              struct{ records, bytes int }
}

// mark is the point from which on no earlier owner of the partition can still write (semantics: the mark).
type mark struct {
	set    bool
	offset int64
	at     time.Time
}

// msgKey names a message within one process.
type msgKey struct {
	id    event.ID
	topic uint64
}

var topicSeed = maphash.MakeSeed()

func keyOf(t event.Topic, id event.ID) msgKey {
	return msgKey{id, maphash.String(topicSeed, t.String())}
}

// add takes a record, which stays where it is, and its plan: both are the hold's from then on.
func (h *hold) add(r *Record, at time.Time, p Plan, dead error) {
	rec := held{rec: r, at: at, dead: dead, size: len(r.Key) + len(r.Value) + 200}
	seq := h.first + int64(len(h.recs))
	ops := p.Ops[:0]
	for _, o := range p.Ops {
		switch o := o.(type) {
		case sinks.PutMessage:
			k := keyOf(o.Topic, o.ID)
			state := h.mem.Get(k)
			copied, held := h.puts[k]
			if rec.fate == fateNone {
				rec.key, rec.fate = k, h.published(k, state, held)
			}
			if p.Elidable && state.acked() {
				h.duplicates++ // its ack came before: the message is gone, or its deletion is held
				continue
			}
			if !rec.put {
				rec.put, rec.prev = true, none
				if held {
					rec.prev = copied
				}
				h.puts[k] = seq
			}
		case sinks.DeleteMessage:
			k := keyOf(o.Topic, o.ID)
			elided := p.Elidable && h.elide(k, o.ID, r.Offset)
			if rec.fate == fateNone {
				rec.key, rec.fate = k, h.acked(k, elided)
			}
			if elided {
				h.add0(rec, nil)
				return
			}
		case sinks.PutAcked, sinks.DeleteAcked, sinks.PutRetained, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
		}
		ops = append(ops, o)
	}
	h.add0(rec, ops)
}

func (h *hold) add0(rec held, ops []sinks.Op) {
	rec.ops = ops
	h.bytes += rec.size
	if n := len(h.recs); n == cap(h.recs) {
		const few = 16
		h.recs = slices.Grow(h.recs, max(n, h.usual, few))
	}
	h.recs = append(h.recs, rec)
}

// none is a sequence number that no record has.
const none = -1

// elide annihilates the held publishes of a message with its ack at the given offset, with the acked row, if that is safe:
// every copy of the publish and the ack lie at or above the mark, the id was minted after the mark's time, and this owner has
// not written the id. A plan with a DeleteMessage holds nothing else but its PutAcked.
func (h *hold) elide(k msgKey, id event.ID, ack int64) bool {
	last, ok := h.puts[k]
	if !ok || !h.mark.set || ack < h.mark.offset || !id.Time().After(h.mark.at.Add(h.skew)) || h.mem.Get(k) == memWritten {
		return false
	}
	for s := last; s >= h.first; s = h.recs[s-h.first].prev {
		if h.recs[s-h.first].rec.Offset < h.mark.offset {
			return false
		}
	}
	for s := last; s >= h.first; s = h.recs[s-h.first].prev {
		r := &h.recs[s-h.first]
		if r.put = false; r.fate == fateStored {
			r.fate = fateElided
		}
		kept := r.ops[:0]
		for _, o := range r.ops {
			if m, ok := o.(sinks.PutMessage); !ok || keyOf(m.Topic, m.ID) != k {
				kept = append(kept, o)
			}
		}
		clear(r.ops[len(kept):])
		r.ops = kept
		if len(kept) == 0 && r.dead == nil {
			h.bytes -= len(r.rec.Value)
			r.size -= len(r.rec.Value)
			r.rec.Value = nil // an elided record keeps its place, not its payload
		}
	}
	h.elided++
	delete(h.puts, k)
	return true
}

// ripe is the length of the ripe prefix: records that lead to nothing any more, or are older than the hold.
func (h *hold) ripe(now time.Time, age time.Duration) int {
	n := 0
	for n < len(h.recs) && (now.Sub(h.recs[n].at) >= age || len(h.recs[n].ops) == 0 && h.recs[n].dead == nil) {
		n++
	}
	return n
}

// drop forgets the first n records, which are committed, and remembers what they wrote.
func (h *hold) drop(n int) {
	all := n == len(h.recs)
	for i := range n {
		r := &h.recs[i]
		h.bytes -= r.size
		r.rec.Wire = event.Wire{} // its bytes do not wait for those of the same fetch
		if !all && r.put && h.puts[r.key] == h.first+int64(i) {
			delete(h.puts, r.key)
		}
	}
	if all {
		clear(h.puts)
		h.recs, h.usual = nil, n+n/8
	} else {
		clear(h.recs[:n])
		h.recs = h.recs[n:]
	}
	h.first += int64(n)
}

// wrote remembers the messages that the first n records have written. It must be called before a flush: from then on they may
// be in the store, whatever the flush says.
func (h *hold) wrote(n int) {
	for i := range n {
		if r := &h.recs[i]; r.put && !h.mem.Get(r.key).acked() {
			h.mem.Put(r.key, memWritten)
		}
	}
}

// recall fills the memory from a record below the committed offset.
func (h *hold) recall(p Plan) {
	for _, o := range p.Ops {
		switch o := o.(type) {
		case sinks.PutMessage:
			k := keyOf(o.Topic, o.ID)
			if h.mem.Get(k).acked() {
				h.mem.Put(k, memAcked)
			} else {
				h.mem.Put(k, memWritten)
			}
		case sinks.DeleteMessage:
			h.acked(keyOf(o.Topic, o.ID), false)
		case sinks.PutAcked, sinks.DeleteAcked, sinks.PutRetained, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
		}
	}
}

type memState byte

const (
	memWritten memState = 1 + iota
	memAcked
	memAckedFirst // and no publish of it was seen
)

func (s memState) acked() bool { return s == memAcked || s == memAckedFirst }
