package dynamodb

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks/topicindex"
)

// never is until when the rows of a message stand that does not expire, µs.
const never = math.MaxInt64

func untilOf(expires time.Time) int64 {
	if expires.IsZero() {
		return never
	}
	return expires.UnixMicro()
}

func lastIDOf(micros int64) string { return event.LastIDAt(time.UnixMicro(micros)).String() }

// levelKey is the range key of a level: a key must not be empty, a level may be.
func levelKey(level string) string { return "/" + level }

// index writes the rows of a topic that are not known to stand until then. They are given two days more, so that the next
// messages find them known.
func (s *Store) index(ctx context.Context, root topicindex.Root, t event.Topic, until int64) error {
	stand := until
	if until != never {
		stand = time.UnixMicro(until).Add(48 * time.Hour).Truncate(time.Hour).UnixMicro()
	}
	for _, r := range topicindex.Rows(root, t) {
		key := r.Parent + r.Level
		if r.Inner {
			key += "\x00" // no topic holds it
		}
		if known, ok := s.nodes.get(key); ok && known >= until {
			continue
		}
		if err := s.node(ctx, r, stand); err != nil {
			return err
		}
		s.nodes.put(key, stand)
	}
	return nil
}

// node writes one row; flags that others set stay, and so does a later end.
func (s *Store) node(ctx context.Context, r topicindex.Row, until int64) error {
	key := item{aParent: str(r.Parent), aLevel: str(levelKey(r.Level))}
	release, err := s.turns.take(ctx, tNode+separator+r.Parent+separator+r.Level)
	if err != nil {
		return explain("write into", s.table(tNode), err)
	}
	defer release()
	mine := aInner
	if r.Leaf {
		mine = aLeaf
	}
	set := "SET #" + mine + " = :t"
	if until == never {
		_, err := s.update(ctx, tNode, key, set+" REMOVE #expires_at", "", item{":t": num(1)})
		return explain("write into", s.table(tNode), err)
	}
	for range 3 {
		_, err := s.update(ctx, tNode, key, set+", #expires_at = :e", "attribute_not_exists(#parent) OR #expires_at < :e", item{":t": num(1), ":e": num(until / 1e6)})
		have, no := refused(err)
		switch {
		case !no:
			return explain("write into", s.table(tNode), err)
		case integer(have, mine) != 0:
			return nil
		}
		// It stands longer than that, but lacks the flag.
		_, err = s.update(ctx, tNode, key, set, "attribute_exists(#parent)", item{":t": num(1)})
		if _, no := refused(err); !no {
			return explain("write into", s.table(tNode), err)
		}
		// It has expired in between: once more.
	}
	return explain("write into", s.table(tNode), errors.New("a row comes and goes"))
}

// nodes reads mqtt_topic_node.
type nodes struct{ s *Store }

func nodeOf(it item) topicindex.Node {
	return topicindex.Node{
		Level: strings.TrimPrefix(text(it, aLevel), levelKey("")), Leaf: integer(it, aLeaf) != 0, Inner: integer(it, aInner) != 0,
	}
}

// Child implements [topicindex.Nodes].
func (n nodes) Child(ctx context.Context, parent, level string) (topicindex.Node, bool, error) {
	if storableKey(tNode, parent, levelKey(level)) != nil {
		return topicindex.Node{}, false, nil // it cannot be there
	}
	it, err := n.s.get(ctx, tNode, item{aParent: str(parent), aLevel: str(levelKey(level))})
	return nodeOf(it), len(it) > 0, err
}

// Children implements [topicindex.Nodes].
func (n nodes) Children(ctx context.Context, parent, from string, limit int) ([]topicindex.Node, error) {
	if len(parent) > maxHash {
		return nil, nil
	}
	condition := "#parent = :p AND #level >= :l"
	if rest, ok := strings.CutSuffix(from, "\x00"); ok { // no level holds it: what is behind the rest
		condition, from = "#parent = :p AND #level > :l", rest
	}
	from = levelKey(from)
	in := &ddb.QueryInput{
		KeyConditionExpression: aws.String(condition), ExpressionAttributeNames: names(condition),
		ExpressionAttributeValues: item{":p": str(parent), ":l": str(from[:min(len(from), maxRange)])},
	}
	var found []topicindex.Node
	err := n.s.query(ctx, tNode, in, func(it item) bool {
		if c := nodeOf(it); levelKey(c.Level) >= from {
			found = append(found, c)
		}
		return len(found) < limit
	})
	return found, err
}
