package dynamodb_test

import (
	"encoding/json"
	goflag "flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
	"github.com/restante/restante/sinks/sinktest"
)

var update = goflag.Bool("update", false, "write the requests on docs/actions.md anew")

// recorder answers as a service whose tables are empty, or as answers say, and notes what is asked.
type recorder struct {
	answers map[string]string // by operation and table

	mu   sync.Mutex
	sent []string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, operation, _ := strings.Cut(req.Header.Get("X-Amz-Target"), ".")
	body, err := io.ReadAll(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var in request
	must(json.Unmarshal(body, &in))
	answer := `{}`
	if operation == "BatchExecuteStatement" {
		answer = `{"Responses":[{}]}`
	}
	if a, ok := r.answers[operation+" "+in.TableName]; ok {
		answer = a
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, in.text(operation))
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_, _ = io.WriteString(w, answer)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.sent
	r.sent = nil
	return sent
}

type attributes map[string]json.RawMessage

func (a attributes) String() string {
	return strings.Join(slices.Sorted(maps.Keys(a)), ", ")
}

// request is what the page shows of one.
type request struct {
	TableName    string
	Key, Item    attributes
	RequestItems map[string]json.RawMessage
	Statements   []struct{ Statement string }

	UpdateExpression, ConditionExpression, KeyConditionExpression string
	ConsistentRead                                                bool
}

func (q request) text(operation string) string {
	var b strings.Builder
	b.WriteString(operation)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "\n    %s %s", name, value)
		}
	}
	if q.TableName != "" {
		b.WriteString(" " + q.TableName)
	}
	for table, raw := range q.RequestItems {
		b.WriteString(" " + table)
		var writes []struct {
			PutRequest    *struct{ Item attributes }
			DeleteRequest *struct{ Key attributes }
		}
		var keys struct {
			Keys           []attributes
			ConsistentRead bool
		}
		if json.Unmarshal(raw, &keys) == nil {
			line("Keys", keys.Keys[0].String())
			line("ConsistentRead", map[bool]string{true: "true"}[keys.ConsistentRead])
			continue
		}
		must(json.Unmarshal(raw, &writes))
		for _, w := range writes {
			if w.PutRequest != nil {
				line("PutRequest", w.PutRequest.Item.String())
			} else {
				line("DeleteRequest", w.DeleteRequest.Key.String())
			}
		}
	}
	for _, s := range q.Statements {
		line("Statement", sortedInsert(s.Statement))
	}
	line("Key", q.Key.String())
	line("Item", q.Item.String())
	line("UpdateExpression", q.UpdateExpression)
	line("KeyConditionExpression", q.KeyConditionExpression)
	line("ConditionExpression", q.ConditionExpression)
	line("ConsistentRead", map[bool]string{true: "true"}[q.ConsistentRead])
	return b.String() + "\n"
}

var insertValues = regexp.MustCompile(`\{(.*)\}`)

// sortedInsert puts the attributes of an INSERT in order: they come in any.
func sortedInsert(statement string) string {
	return insertValues.ReplaceAllStringFunc(statement, func(s string) string {
		parts := strings.Split(strings.Trim(s, "{}"), ", ")
		slices.Sort(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	})
}

func TestThePageShowsTheRequestsThatAreSent(t *testing.T) {
	t.Parallel()
	want := map[string]string{}
	show := func(a sinktest.Action, batches [][]sinks.Op, answers map[string]string, change func(*dynamodb.Config)) {
		r := &recorder{answers: answers}
		server := httptest.NewServer(r)
		defer server.Close()
		cfg := dynamodb.Config{
			Region: "us-west-2", Endpoint: server.URL, AccessKeyID: "restante", SecretAccessKey: "secret",
			Now: func() time.Time { return sinktest.PageTime.Add(time.Second) },
		}
		if change != nil {
			change(&cfg)
		}
		s, err := dynamodb.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close() //nolint:errcheck // it returns none
		for _, ops := range batches {
			apply(t, s, ops...)
		}
		if a.Read != nil {
			if err := a.Read(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		want[a.Name] = strings.Join(sinktest.Once(r.take()), "")
	}

	m, second := sinktest.PageMessage("t/1", 1), sinktest.PageMessage("t/1", 2)
	bucket := fmt.Sprintf(`{"SS":["%d-600-0-0"]}`, m.ID.Micros()/1e6/600*600)
	listed := map[string]string{"GetItem mqtt_topic_msg_map": fmt.Sprintf(`{"Item":{"MsgId":{"SS":[%q]},"buckets":%s}}`, m.ID, bucket)}
	inner := map[string]string{
		"GetItem mqtt_topic_node": `{"Item":{"level":{"S":"/t"},"inner":{"N":"1"}}}`,
		"Query mqtt_topic_node":   `{"Items":[{"level":{"S":"/1"},"leaf":{"N":"1"}}]}`,
	}
	answers := map[string]map[string]string{
		"on_message_fetch_for_queue":  listed,
		"on_message_fetch_for_pubsub": listed,
		"Wildcards":                   inner,
		"on_retain_lookup":            inner,
	}
	for _, a := range sinktest.Actions() {
		byClient := func(c *dynamodb.Config) {
			c.ByClient = strings.HasSuffix(a.Name, "_pubsub") || a.Name == "on_acked_delete"
		}
		show(a, slices.Collect(slices.Chunk(a.Ops, 1)), answers[a.Name], byClient) // of ops at once the order is open
	}
	first, next := sinks.PutMessage{Message: m}, sinks.PutMessage{Message: second}
	acked := sinks.DeleteMessage{Topic: second.Topic, ID: second.ID, Stamp: second.ID.Micros() + 1}
	show(sinktest.Action{Name: "DynamoDB: more than first_ids messages of a topic"}, [][]sinks.Op{{first, next}, {acked}}, map[string]string{
		"UpdateItem mqtt_topic_msg_map": fmt.Sprintf(`{"Attributes":{"MsgId":{"SS":[%q]},"buckets":%s}}`, m.ID, bucket),
	}, func(c *dynamodb.Config) { c.FirstIDs = 1 })
	gone := sinks.DeleteRetained{Topic: m.Topic, Stamp: m.ID.Micros()}
	show(sinktest.Action{Name: "DynamoDB: strict"}, [][]sinks.Op{{first}, {sinks.DeleteMessage{Topic: m.Topic, ID: m.ID, Stamp: m.ID.Micros() + 1}}, {gone}},
		nil, func(c *dynamodb.Config) { c.Strict = true })
	sinktest.Page(t, "text", *update, want)
}
