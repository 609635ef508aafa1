package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocql/gocql"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack"
)

// plainCassandra is a keyspace, seen by the plain driver.
type plainCassandra struct {
	address, keyspace string
	session           *gocql.Session // nil: a new one for each look
	// topics are those of the messages, where there may be more tombstones than Cassandra reads at a time; nil = all.
	topics []string
}

// connectCassandra logs in with the plain driver.
func connectCassandra(address string) (*gocql.Session, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	c := gocql.NewCluster(host)
	c.Port = port
	c.ProtoVersion = 4
	c.Timeout, c.ConnectTimeout = time.Minute, time.Minute // busy machines
	c.Consistency = gocql.One
	c.Authenticator = gocql.PasswordAuthenticator{Username: stack.User, Password: stack.Password}
	c.Logger = silent{}
	return c.CreateSession()
}

type silent struct{}

func (silent) Print(...any)          {}
func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

// lookCassandra stays connected to a server that stays up; the keyspace is dropped at the end of the test.
func lookCassandra(t *testing.T, address, keyspace string) plainCassandra {
	t.Helper()
	s, err := connectCassandra(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Query("DROP KEYSPACE IF EXISTS " + keyspace).Exec(); err != nil {
			t.Log(err) // the server ends soon; nobody else looks there
		}
		s.Close()
	})
	return plainCassandra{address: address, keyspace: keyspace, session: s}
}

// query gives the rows of a statement.
func (p plainCassandra) query(ctx context.Context, cql string) ([]map[string]any, error) {
	s := p.session
	if s == nil {
		var err error
		if s, err = connectCassandra(p.address); err != nil {
			return nil, err
		}
		defer s.Close()
	}
	return s.Query(strings.ReplaceAll(cql, "{}", p.keyspace)).WithContext(ctx).PageSize(2000).Iter().SliceMap()
}

// rows is query for a server that is up.
func (p plainCassandra) rows(t *testing.T, cql string) []map[string]any {
	t.Helper()
	rows, err := p.query(t.Context(), cql)
	if err != nil {
		t.Fatalf("%s: %v", cql, err)
	}
	return rows
}

func (p plainCassandra) messages(ctx context.Context) (map[string]stored, error) {
	const columns = "SELECT topic, msgid, payload FROM {}.mqtt_msg"
	var rows []map[string]any
	var err error
	if p.topics == nil {
		rows, err = p.query(ctx, columns)
	}
	for _, topic := range p.topics {
		var some []map[string]any
		if some, err = p.within(ctx, columns+" WHERE topic = '"+topic+"'", time.Now().Add(-24*time.Hour), time.Now().Add(time.Hour)); err != nil {
			break
		}
		rows = append(rows, some...)
	}
	if err != nil {
		return nil, err
	}
	out := make(map[string]stored, len(rows))
	for _, r := range rows {
		out[r["msgid"].(string)] = stored{r["topic"].(string), r["payload"].(string)}
	}
	if len(out) < len(rows) {
		return nil, fmt.Errorf("%d rows have %d message ids", len(rows), len(out))
	}
	return out, nil
}

// within gives the rows of a range of message ids. One with too many tombstones is read in halves.
func (p plainCassandra) within(ctx context.Context, cql string, from, to time.Time) ([]map[string]any, error) {
	rows, err := p.query(ctx, fmt.Sprintf("%s AND msgid >= '%s' AND msgid < '%s'", cql, event.FirstIDAt(from), event.FirstIDAt(to)))
	if err == nil || !strings.Contains(err.Error(), "TOO_MANY_TOMBSTONES") || to.Sub(from) < time.Second {
		return rows, err
	}
	middle := from.Add(to.Sub(from) / 2)
	if rows, err = p.within(ctx, cql, from, middle); err != nil {
		return nil, err
	}
	more, err := p.within(ctx, cql, middle, to)
	return append(rows, more...), err
}

// dump shows the rows with their write times.
func (p plainCassandra) dump(ctx context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	for table, columns := range map[string]string{
		"mqtt_msg":        "topic, msgid, arrived, payload, qos, retain, sender, WRITETIME(payload) AS written",
		"acked":           "clientid, topic, msgid, WRITETIME(msgid) AS written",
		"mqtt_retain":     "topic, msgid, arrived, payload, qos, retain, sender, props, WRITETIME(payload) AS written",
		"mqtt_client":     "clientid, state, node, online_at, offline_at, WRITETIME(state) AS written",
		"mqtt_sub":        "clientid, topic, qos, WRITETIME(qos) AS written",
		"mqtt_msg_props":  "topic, msgid, props, history",
		"mqtt_topic_node": "parent, level, leaf, inner",
		"mqtt_topic_low":  "topic, low, late, props, others",
	} {
		rows, err := p.query(ctx, "SELECT "+columns+" FROM {}."+table)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			text, err := json.Marshal(r)
			if err != nil {
				return nil, err
			}
			out[table] = append(out[table], string(text))
		}
		slices.Sort(out[table])
	}
	return out, nil
}
