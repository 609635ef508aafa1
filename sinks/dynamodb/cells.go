package dynamodb

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/restante/restante/event"
)

// The ids of a topic stand in its item of mqtt_topic_msg_map, as the seed has them, up to a bound; the others in cells. A
// bucket is a span of time of the ids of one topic, and is listed in the topic's item. It is cut into 2^level cells, each an
// item of the same table; which of them an id is in follows from its time. A bucket that fills up goes on at the next level,
// where its cells are half as long: what was written stays where it is, and both levels are listed. So everything a writer
// does to the table is to add to a set, in time order, and a page of a fetch reads only the cells that it needs.

const (
	// separator stands between a topic and the name of a cell. In a topic it is doubled, so no topic is another's cell.
	separator = "\x1f"
	// maxLevel makes cells of 9 ms of a bucket of ten minutes.
	maxLevel = 16
	// maxCellName is the longest that a cell's key is longer than its topic's.
	maxCellName = 40
	// lifeUnit is the life of the ids of a bucket of class 1; each class is twice as long as the one before.
	lifeUnit = 8 * 24 * time.Hour
	maxLife  = 12 // 45 years; what lives longer is taken to live for ever
)

// topicKey is the key of a topic's item: the topic.
func topicKey(t event.Topic) string {
	return strings.ReplaceAll(t.String(), separator, separator+separator)
}

// bucket is a span of time of a topic's ids, at one level.
type bucket struct {
	start, step int64 // s
	level       int
	// life is the class of the expiry of what stands in it; 0 = some of it may live for ever.
	life int
}

// bucketOf is the bucket of an id whose message expires then (zero = never), at level 0.
func bucketOf(id event.ID, expires time.Time, step int64) bucket {
	s := id.Micros() / 1e6
	b := bucket{start: s - s%step, step: step}
	if expires.IsZero() {
		return b
	}
	end := time.Unix(b.start+step, 0)
	for b.life = 1; expires.After(end.Add(lifeUnit << (b.life - 1))); b.life++ {
		if b.life == maxLife {
			b.life = 0
			break
		}
	}
	return b
}

func (b bucket) String() string { return fmt.Sprintf("%d-%d-%d-%d", b.start, b.step, b.level, b.life) }

func parseBucket(s string) (bucket, bool) {
	parts := strings.Split(s, "-")
	if len(parts) != 4 {
		return bucket{}, false
	}
	var n [4]int64
	for i, p := range parts {
		var err error
		if n[i], err = strconv.ParseInt(p, 10, 64); err != nil {
			return bucket{}, false
		}
	}
	b := bucket{start: n[0], step: n[1], level: int(n[2]), life: int(n[3])}
	ok := b.start >= 0 && b.start < 1<<43 && b.step > 0 && b.step < 1<<26 && b.level >= 0 && b.level <= maxLevel && b.life >= 0 && b.life <= maxLife
	return b, ok && b.String() == s
}

// at is the same span at another level.
func (b bucket) at(level int) bucket {
	b.level = level
	return b
}

func (b bucket) end() time.Time { return time.Unix(b.start+b.step, 0) }

// holds reports whether ids of that time stand in the bucket.
func (b bucket) holds(micros int64) bool {
	s := micros / 1e6
	return s >= b.start && s < b.start+b.step
}

// dies is when nothing in the bucket is alive and no write to it can come any more; zero = never. Nothing is removed that is
// younger than keep.
func (b bucket) dies(keep time.Duration) time.Time {
	if b.life == 0 {
		return time.Time{}
	}
	return b.end().Add(max(lifeUnit<<(b.life-1), keep))
}

// cell is the index of the cell that an id of that time is in.
func (b bucket) cell(micros int64) int64 { return (micros - b.start*1e6) << b.level / (b.step * 1e6) }

func (b bucket) cells() int64 { return 1 << b.level }

// begins is the first µs of cell i, and of what follows the last cell.
func (b bucket) begins(i int64) int64 {
	return b.start*1e6 + (i*b.step*1e6+(1<<b.level)-1)>>b.level
}

// cellKey is the key of a cell.
func cellKey(topic string, b bucket, i int64) string {
	return topic + separator + b.String() + "-" + strconv.FormatInt(i, 10)
}
