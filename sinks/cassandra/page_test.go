package cassandra

import (
	goflag "flag"
	"slices"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/sinktest"
	"github.com/restante/restante/sinks/topicindex"
)

var update = goflag.Bool("update", false, "write the statements on docs/actions.md anew")

// pageReads are the statements by which the reads of the page are done.
var pageReads = map[string][]query{
	"on_message_fetch_for_pubsub": {selectPositions, selectLow, selectMessages, selectProps},
	"on_message_fetch_for_queue":  {selectLow, selectMessages, selectNewest, selectProps},
	"Wildcards":                   {selectNode, selectNodes},
	"on_retain_lookup":            {selectRetained, selectNode, selectNodes},
	"on_subscribe_lookup":         {selectSubs},
}

// pageBesides are statements that belong to no action alone.
var pageBesides = map[string][]query{
	"Cassandra: late messages and marks": {addLate, addTokens, selectLow, setLow, setSeen, setOthers},
	"Cassandra: other reads":             {selectAcked, selectClient},
}

func TestThePageShowsTheStatementsThatAreSent(t *testing.T) {
	t.Parallel()
	now := sinktest.PageTime.Add(time.Second)
	want, shown := map[string]string{}, map[query]bool{}
	cfg := Config{Keyspace: defaultKeyspace}
	show := func(name string, queries []query) {
		var texts []string
		for _, q := range queries {
			shown[q] = true
			texts = append(texts, cfg.named(queryTexts[q]))
		}
		want[name] = sinktest.Statements(texts)
	}
	for _, a := range sinktest.Actions() {
		queries := pageReads[a.Name]
		if (len(queries) > 0) != (a.Read != nil) {
			t.Errorf("%s: what it reads is not what the list says", a.Name)
		}
		if len(a.Ops) > 0 {
			queries = sentFor(t, a, now)
		}
		show(a.Name, queries)
	}
	for name, queries := range pageBesides {
		show(name, queries)
	}
	for q := range manyQueries {
		if !shown[q] {
			t.Errorf("the page shows nowhere: %s", queryTexts[q])
		}
	}
	sinktest.Page(t, "cql", *update, want)
}

// sentFor are the statements that a store sends which knows nothing yet, in their order: what leads to a message before it.
func sentFor(t *testing.T, a sinktest.Action, now time.Time) []query {
	t.Helper()
	s, err := Open(t.Context(), Config{Hosts: []string{"127.0.0.1:1"}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it never connected
	w := &work{store: s, now: now, ops: a.Ops, failed: map[int]error{}}
	withProps := map[event.Topic]bool{sinktest.PageMessage("t/1", 1).Topic: true}
	var first, then []query
	for _, o := range a.Ops {
		var claims []claim
		switch o := o.(type) {
		case sinks.PutMessage:
			claims = w.claims(o, map[string]claim{})
		case sinks.PutRetained:
			claims = w.indexClaims(topicindex.Retained, o.Message, map[string]claim{})
		case sinks.DeleteMessage:
			first = append(first, selectLow) // whether messages of the topic have properties
		case sinks.PutAcked, sinks.DeleteAcked, sinks.DeleteRetained, sinks.PutClient, sinks.PutSub, sinks.DeleteSub:
		}
		for _, c := range claims {
			first = append(first, c.statement(now).q)
		}
		u, err := w.unit(o, withProps)
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range u.statements {
			then = append(then, st.q)
		}
	}
	return slices.Concat(first, then)
}
