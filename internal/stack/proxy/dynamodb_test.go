package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/stack"
)

// table is a table of the test's own, reached by an endpoint of choice.
type table struct {
	name   string
	client *http.Client
}

var errAgain = errors.New("to be tried again")

// call gives errAgain for what a client tries again: no answer, 5xx, throttling.
func (tb table) call(t *testing.T, endpoint, action string, request map[string]any) (map[string]json.RawMessage, error) {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, endpoint, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.GetBody = nil // the client must not repeat what the test is to see
	req.Header.Set("X-Amz-Target", "DynamoDB_20120810."+action)
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=key/20260101/eu-west-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := tb.client.Do(req)
	if err != nil {
		return nil, errors.Join(errAgain, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, errors.Join(errAgain, err)
	}
	if resp.StatusCode >= 500 || resp.StatusCode == 400 && slices.ContainsFunc(throttles, func(s string) bool { return strings.Contains(string(text), s) }) {
		return nil, fmt.Errorf("%w: %s %s", errAgain, resp.Status, text)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s %s", action, resp.Status, text)
	}
	var answer map[string]json.RawMessage
	return answer, json.Unmarshal(text, &answer)
}

// must asks until it is answered.
func (tb table) must(t *testing.T, endpoint, action string, request map[string]any) map[string]json.RawMessage {
	t.Helper()
	for {
		answer, err := tb.call(t, endpoint, action, request)
		if errors.Is(err, errAgain) && t.Context().Err() == nil {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}

func newTable(t *testing.T, endpoint string) table {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	tb := table{name: stack.Unique(t), client: &http.Client{Transport: transport}}
	tb.must(t, endpoint, "CreateTable", map[string]any{
		"TableName": tb.name, "BillingMode": "PAY_PER_REQUEST",
		"AttributeDefinitions": []any{map[string]string{"AttributeName": "k", "AttributeType": "S"}},
		"KeySchema":            []any{map[string]string{"AttributeName": "k", "KeyType": "HASH"}},
	})
	return tb
}

func item(k, v string) map[string]any {
	return map[string]any{"k": map[string]string{"S": k}, "v": map[string]string{"S": v}}
}

func key(k string) map[string]any { return map[string]any{"k": map[string]string{"S": k}} }

// rows reads the whole table.
func (tb table) rows(t *testing.T, endpoint string) map[string]string {
	t.Helper()
	got := map[string]string{}
	request := map[string]any{"TableName": tb.name, "ConsistentRead": true}
	for {
		answer := tb.must(t, endpoint, "Scan", request)
		var items []map[string]map[string]string
		if err := json.Unmarshal(answer["Items"], &items); err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			got[i["k"]["S"]] = i["v"]["S"]
		}
		if answer["LastEvaluatedKey"] == nil {
			return got
		}
		request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
	}
}

func TestAClientThatTriesAgainGetsThroughAllFaults(t *testing.T) {
	t.Parallel()
	endpoint := stack.Shared(t, stack.DynamoDB)
	tb := newTable(t, endpoint)
	p, err := ListenDynamoDB(endpoint, 1, Faults{
		Unprocessed: 0.2, Throttled: 0.1, Internal: 0.1, Slow: 0.1, CutBefore: 0.1, CutAfter: 0.1, SlowBy: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()

	want := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for n := range 40 {
				var puts []any
				part := map[string]string{}
				for i := range 1 + rng.IntN(25) {
					k, v := fmt.Sprintf("%d-%d-%d", w, n, i), fmt.Sprint(rng.IntN(1000))
					part[k] = v
					puts = append(puts, map[string]any{"PutRequest": map[string]any{"Item": item(k, v)}})
				}
				mu.Lock()
				maps.Copy(want, part)
				mu.Unlock()
				for left := any(map[string]any{tb.name: puts}); ; {
					answer := tb.must(t, p.Endpoint(), "BatchWriteItem", map[string]any{"RequestItems": left})
					var more map[string][]json.RawMessage
					if err := json.Unmarshal(answer["UnprocessedItems"], &more); err != nil {
						t.Error(err)
						return
					}
					if len(more) == 0 {
						break
					}
					left = more
				}
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff(want, tb.rows(t, endpoint)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	c := p.Counts()
	t.Logf("%+v", c)
	for name, n := range map[string]int{
		"unprocessed": c.Unprocessed, "throttled": c.Throttled, "internal": c.Internal, "slow": c.Slow, "cut before": c.CutBefore, "cut after": c.CutAfter,
	} {
		if n < c.Requests/30 {
			t.Errorf("%s: %d of %d requests, want about a tenth or more", name, n, c.Requests)
		}
	}
}

func TestEachFaultDoesWhatItSays(t *testing.T) {
	t.Parallel()
	endpoint := stack.Shared(t, stack.DynamoDB)
	for sentence, c := range map[string]struct {
		faults   Faults
		answered bool
		done     bool
	}{
		"passes":                     {Faults{}, true, true},
		"not a batch":                {Faults{Unprocessed: 1}, true, true},
		"throttled":                  {Faults{Throttled: 1}, false, false},
		"an internal error":          {Faults{Internal: 1}, false, false},
		"slow":                       {Faults{Slow: 1, SlowBy: 10 * time.Millisecond}, true, true},
		"cut before it is done":      {Faults{CutBefore: 1}, false, false},
		"cut in place of the answer": {Faults{CutAfter: 1}, false, true},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			tb := newTable(t, endpoint)
			p, err := ListenDynamoDB(endpoint, 1, Faults{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = p.Close() }()
			p.Set(c.faults)
			_, err = tb.call(t, p.Endpoint(), "PutItem", map[string]any{"TableName": tb.name, "Item": item("a", "1")})
			if got := err == nil; got != c.answered || err != nil && !errors.Is(err, errAgain) {
				t.Errorf("answered: got %v (%v), want %v", got, err, c.answered)
			}
			if got := len(tb.rows(t, endpoint)) == 1; got != c.done {
				t.Errorf("done: got %v, want %v", got, c.done)
			}
		})
	}
}

// What is withheld from a batch is given back, and the two parts are the whole.
func TestABatchIsDoneInParts(t *testing.T) {
	t.Parallel()
	endpoint := stack.Shared(t, stack.DynamoDB)
	tb := newTable(t, endpoint)
	p, err := ListenDynamoDB(endpoint, 1, Faults{Unprocessed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	partial := 0
	for n := range 20 {
		var statements, keys []any
		for i := range 10 {
			k := fmt.Sprintf("%d-%d", n, i)
			keys = append(keys, key(k))
			statements = append(statements, map[string]any{"Statement": fmt.Sprintf(`INSERT INTO "%s" VALUE {'k': '%s', 'v': 'x'}`, tb.name, k)})
		}
		answer := tb.must(t, p.Endpoint(), "BatchExecuteStatement", map[string]any{"Statements": statements})
		var responses []struct{ Error *struct{ Code string } }
		if err := json.Unmarshal(answer["Responses"], &responses); err != nil {
			t.Fatal(err)
		}
		if len(responses) != len(statements) {
			t.Fatalf("got %d responses to %d statements", len(responses), len(statements))
		}
		rows, failed := tb.rows(t, endpoint), 0
		for i, r := range responses {
			_, stands := rows[fmt.Sprintf("%d-%d", n, i)]
			if stands == (r.Error != nil) {
				t.Errorf("statement %d of batch %d: it stands: %v, its error: %v", i, n, stands, r.Error)
			}
			if r.Error != nil {
				failed++
			}
		}
		if failed == 0 {
			t.Errorf("batch %d was done whole", n)
		}
		if failed < len(statements) {
			partial++
		}

		answer = tb.must(t, p.Endpoint(), "BatchGetItem", map[string]any{"RequestItems": map[string]any{tb.name: map[string]any{"Keys": keys, "ConsistentRead": true}}})
		var found map[string][]json.RawMessage
		var left map[string]struct {
			Keys []map[string]map[string]string
		}
		if err := errors.Join(json.Unmarshal(answer["Responses"], &found), json.Unmarshal(answer["UnprocessedKeys"], &left)); err != nil {
			t.Fatal(err)
		}
		want := len(statements) - failed
		for _, k := range left[tb.name].Keys {
			if _, stands := rows[k["k"]["S"]]; stands {
				want--
			}
		}
		if len(found[tb.name]) != want || len(left[tb.name].Keys) == 0 {
			t.Errorf("batch %d: %d items and %d unprocessed keys, want %d items and some", n, len(found[tb.name]), len(left[tb.name].Keys), want)
		}
	}
	if partial < 10 {
		t.Errorf("%d of 20 batches were done in part, want most", partial)
	}
}
