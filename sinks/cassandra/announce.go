package cassandra

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/gocql/gocql"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/topicindex"
)

// claim is a row that must live at least until a time, so that readers find a message: a row of the topic index, a late hour, a
// flag of the topic. It is written at that time, so of two claims of one row the longer-lived wins, in any order.
type claim struct {
	key   string // names the row
	until int64  // µs
	q     query
	row   []any // its columns
}

// forever is the until of what does not expire. As a write time it is greater than that of any row that does.
var forever = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// lateAge is how old a message may be when it is written and need not be listed as late. Low marks stay behind by far more.
const lateAge = 30 * time.Minute

// untils says how long the claims of a message must live, and how long they are made to live so that the next messages need
// not write them again: a quarter longer, and an hour.
func untils(m sinks.Message, now time.Time) (need, made int64) {
	left, _ := ttl(m.Expires, now)
	if left == never {
		return forever, forever
	}
	life := max(m.Expires.UnixMicro()-m.ID.Micros(), 0)
	need = m.Expires.UnixMicro() + time.Second.Microseconds()
	return need, need + life/4 + time.Hour.Microseconds()
}

// announce writes the claims of the messages in the batch that are not known to be there. The messages of a topic whose claims
// could not be written fail.
func (w *work) announce(ctx context.Context) {
	wanted := map[string]claim{}
	needs := map[int][]string{} // op → keys of claims
	topics := map[string]claim{}
	for i, o := range w.ops {
		var all []claim
		switch o := o.(type) {
		case sinks.PutMessage:
			all = w.claims(o, topics)
		case sinks.PutRetained:
			if storableTopic(o.Topic) == nil && !expired(o.Message, w.now) {
				all = w.indexClaims(topicindex.Retained, o.Message, topics)
			}
		case sinks.DeleteMessage, sinks.PutAcked, sinks.DeleteAcked, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
		}
		for _, c := range all {
			needs[i] = append(needs[i], c.key)
			if have, ok := wanted[c.key]; !ok || have.until < c.until {
				wanted[c.key] = c
			}
		}
	}
	if len(wanted) == 0 {
		return
	}
	bad := w.stake(ctx, wanted)
	for i, keys := range needs {
		for _, key := range keys {
			if err := bad[key]; err != nil {
				w.failed[i] = err
			}
		}
	}
	for key, c := range topics {
		if !c.refused(bad) {
			w.store.covered.note(key, c.until)
		}
	}
}

// refused reports whether one of the rows that the claim of a whole topic stands for was not written.
func (c claim) refused(bad map[string]error) bool {
	for _, key := range c.row {
		if bad[key.(string)] != nil {
			return true
		}
	}
	return false
}

// claims are those of a message. One that has expired has none; one for the record only is not looked for.
func (w *work) claims(o sinks.PutMessage, topics map[string]claim) []claim {
	m := o.Message
	if expired(m, w.now) || storableTopic(m.Topic) != nil {
		return nil
	}
	need, made := untils(m, w.now)
	topic := m.Topic.String()
	var all []claim
	add := func(key string, q query, row ...any) {
		if !w.store.covered.until(key, need) {
			all = append(all, claim{key, made, q, row})
		}
	}
	if o.History || !m.Properties.IsZero() {
		add(propsKey(topic), setProps, topic)
	}
	if o.History {
		return all
	}
	if hour, ok := w.late(m); ok {
		add("late\x00"+strconv.FormatInt(hour, 36)+"\x00"+topic, addLate, []int64{hour}, topic)
	}
	return append(all, w.indexClaims(topicindex.Messages, m, topics)...)
}

func propsKey(topic string) string { return "props\x00" + topic }

// indexClaims are the rows of the index that a topic needs. That all of them are there is remembered under the topic, in topics
// while they are being written. Rows that topics share are made to live longer still: they need not be written for each of them.
func (w *work) indexClaims(root topicindex.Root, m sinks.Message, topics map[string]claim) []claim {
	need, made := untils(m, w.now)
	whole := "topic\x00" + string(root) + m.Topic.String()
	if w.store.covered.until(whole, need) {
		return nil
	}
	longer := made
	if made < forever {
		longer += made - need
	}
	var all []claim
	t := claim{key: whole, until: made}
	for _, r := range topicindex.Rows(root, m.Topic) {
		for _, flag := range flagsOf(r) {
			key := "node\x00" + r.Parent + "\x00" + r.Level + flag.name
			if !w.store.covered.until(key, made) {
				all = append(all, claim{key, longer, insertNode, []any{r.Parent, r.Level, flag.leaf, flag.inner}})
				t.row = append(t.row, key)
			}
		}
	}
	if have, ok := topics[whole]; !ok || have.until < t.until {
		topics[whole] = t
	}
	return all
}

type flag struct {
	name        string
	leaf, inner any
}

// flagsOf are the flags of a row. Each is written alone, so that none takes a longer life away from another.
func flagsOf(r topicindex.Row) (all []flag) {
	if r.Leaf {
		all = append(all, flag{"\x00leaf", true, gocql.UnsetValue})
	}
	if r.Inner {
		all = append(all, flag{"\x00inner", gocql.UnsetValue, true})
	}
	return all
}

// stake writes claims and returns the errors by key.
func (w *work) stake(ctx context.Context, claims map[string]claim) map[string]error {
	s := w.store
	var g errgroup.Group
	g.SetLimit(s.cfg.InFlight)
	bad := map[string]error{}
	for _, c := range claims {
		g.Go(func() error {
			err := s.exec(ctx, w.session, []statement{c.statement(w.now)})
			if err != nil {
				w.mu.Lock()
				bad[c.key] = err
				w.mu.Unlock()
				return nil
			}
			s.covered.note(c.key, c.until)
			if c.q == addLate {
				s.cfg.Metrics.Count(Late, 1)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in bad
	return bad
}

// statement writes the claim at its own end.
func (c claim) statement(now time.Time) statement {
	left := never
	if c.until < forever {
		left = int(min(max(math.Ceil(float64(c.until-now.UnixMicro())/1e6), 1), maxTTL))
	}
	if c.q == insertNode {
		return statement{c.q, append(append([]any{}, c.row...), c.until, left)}
	}
	return statement{c.q, append([]any{c.until, left}, c.row...)}
}
