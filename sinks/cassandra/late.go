package cassandra

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// The marks of late hours. A mark says: when a reader had found these tokens, the hour held no message below this id. It is used
// only where the tokens of the hour are still the same.
//
// A writer puts a new token into a cell of its own after the late rows are durable, and Apply succeeds only when that is durable
// too. No message whose Apply returned before a read began is hidden from it, for these reasons:
//
//  1. A pass reads the tokens before the messages. If it missed a row, that row became durable later than it read the tokens; the
//     token that was made after that is not among them.
//  2. Tokens never come again. Those of one store rise, and are at once the write times of its cell, so the cell goes only forward,
//     also when its writes pass each other. Another store, be it a writer that has lost its place and does not know it, has another
//     cell. No two clocks meet here.
//  3. A row that was written by a writer that failed before its token was made is written again, with a token, by who takes over.
//  4. A mark lives shorter than any token that is missing in it, so that the tokens do not become what they were by one that
//     expired. A mark that rests on another is newer than that one, and has read the tokens again.
//  5. A mark is written as one cell, so its id always goes with its tokens. Of two that meet any may stay: each is true for
//     its tokens.
//  6. What is written younger than lateAge makes no token. For its sake these marks stay an hour behind the reader's clock, as the
//     topic's does: low.go, 2.
//  7. Removals make no token: they only take away.
//
// A row whose Apply has not returned may be hidden. A replay does not take it from here: its record is not committed yet, and is
// read from the log.
const (
	seenLife  = 7 * 24 * time.Hour
	tokenLife = 8 * 24 * time.Hour
	// passTime is the most that lies between the reading of tokens and a mark that names them. It is part of the difference above.
	passTime = time.Hour
)

// tokens makes the tokens of one store.
type tokens struct {
	writer string // unlike that of any other store

	mu   sync.Mutex
	last int64 // µs
}

func (t *tokens) next(now time.Time) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = max(t.last+1, now.UnixMicro())
	return t.last
}

// key names the cell of an hour.
func (t *tokens) key(hour int64) string { return strconv.FormatInt(hour, 10) + "/" + t.writer }

func beginOf(hour int64) event.ID {
	return event.FirstIDAt(time.UnixMicro(hour * time.Hour.Microseconds()))
}

func endOf(hour int64) event.ID { return beginOf(hour + 1) }

// late is the hour of a message that is to be listed.
func (w *work) late(m sinks.Message) (hour int64, ok bool) {
	return m.ID.Micros() / time.Hour.Microseconds(), w.now.UnixMicro()-m.ID.Micros() > lateAge.Microseconds()
}

// sign puts new tokens into the late hours that were written to, one statement a topic. The messages of a topic whose tokens
// could not be written fail: they are stored, but a mark may hide them.
func (w *work) sign(ctx context.Context) {
	s := w.store
	hours, ops := map[event.Topic]map[string]int64{}, map[event.Topic][]int{}
	for i, o := range w.ops {
		put, ok := o.(sinks.PutMessage)
		if !ok || w.failed[i] != nil || put.History || expired(put.Message, w.now) {
			continue
		}
		hour, ok := w.late(put.Message)
		if !ok {
			continue
		}
		if hours[put.Topic] == nil {
			hours[put.Topic] = map[string]int64{}
		}
		hours[put.Topic][s.tokens.key(hour)] = 0
		ops[put.Topic] = append(ops[put.Topic], i)
	}
	var g errgroup.Group
	g.SetLimit(s.cfg.InFlight)
	for topic, cells := range hours {
		g.Go(func() error {
			token := s.tokens.next(w.now)
			for key := range cells {
				cells[key] = token
			}
			err := s.exec(ctx, w.session, []statement{{addTokens, []any{token, int(tokenLife / time.Second), cells, topic.String()}}})
			if err != nil {
				for _, i := range ops[topic] {
					w.fail(i, fmt.Errorf("sign late hours: %w", err))
				}
			}
			return nil
		})
	}
	_ = g.Wait() // each op's error is in failed
}

// judge works out which marks of late hours are to be trusted; false when there is something that cannot be read, then none is.
func (r *lowRow) judge(tokens map[string]int64, seen map[int64]string) bool {
	if len(r.late) == 0 {
		return true
	}
	cells := map[int64][]string{}
	for key, token := range tokens {
		text, _, _ := strings.Cut(key, "/")
		hour, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return false
		}
		cells[hour] = append(cells[hour], key+"="+strconv.FormatInt(token, 10))
	}
	sums, from := make(map[int64]string, len(r.late)), map[int64]event.ID{}
	for _, hour := range r.late {
		sums[hour] = sumOf(cells[hour])
		sum, text, ok := strings.Cut(seen[hour], ":")
		if !ok || sum != sums[hour] {
			continue
		}
		id, err := event.ParseID(text)
		if err != nil {
			return false
		}
		from[hour] = id
	}
	r.sums, r.from = sums, from
	return true
}

// sumOf stands for a set of tokens.
func sumOf(cells []string) string {
	slices.Sort(cells)
	sum := sha256.Sum256([]byte(strings.Join(cells, "\n")))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// begin is the least id of a late hour that may hold a message; the hour's end when none may.
func (r lowRow) begin(hour int64) event.ID {
	begin := beginOf(hour)
	if id := r.from[hour]; id.Compare(begin) > 0 {
		return id
	}
	return begin
}

// sightings are the marks of late hours that the read moves, in one statement or none.
func (w *walk) sightings(now time.Time, most event.ID) []statement {
	if time.Since(w.begun) > passTime {
		return nil
	}
	marks := map[int64]string{}
	for hour, sum := range w.row.sums {
		begin, end := w.row.begin(hour), endOf(hour)
		first, ok := w.least(begin)
		if !ok {
			continue
		}
		if first.Compare(end) > 0 {
			first = end
		}
		if first, ok = moved(begin, first, most); ok {
			marks[hour] = sum + ":" + first.String()
		}
	}
	if len(marks) == 0 {
		return nil
	}
	return []statement{{setSeen, []any{now.UnixMicro(), int(seenLife / time.Second), marks, w.q.Topic.String()}}}
}
