package sinktest

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

// page is docs/actions.md as tests of a store see it.
const page = "../../docs/actions.md"

// Action is what an action of a rule asks of a store. The page on actions shows for each, under its name, what a store sends.
type Action struct {
	Name   string
	Before []sinks.Op // are stored already
	Ops    []sinks.Op
	// Read is what the replayer reads; nil = nothing.
	Read func(context.Context, sinks.Reader) error
}

// PageTime is the time of what the actions are about.
var PageTime = time.UnixMicro(1_700_000_000_000_000).UTC()

// PageMessage is a message with all that a message can have, published at PageTime and kept for a week.
func PageMessage(topic string, n int) sinks.Message {
	id := event.IDOf(PageTime.UnixMicro(), 0xF44200000901, uint16(n)) //nolint:gosec // small
	return sinks.Message{
		ID: id, Topic: mustTopic(topic), Sender: "sender", QoS: 1, Payload: []byte("hello"), Arrived: PageTime,
		Properties: event.Properties{ContentType: "text/plain"}, Expires: PageTime.Add(7 * 24 * time.Hour),
	}
}

// Actions are the actions of rules. What they plan for is held by a test of package pipeline; positions of pub/sub are written and removed by
// the replayer.
func Actions() []Action {
	m := PageMessage("t/1", 1)
	retained := m
	retained.Retain = true
	filter := mustFilter("t/#")
	const client = event.ClientID("dev1")
	at := PageTime.UnixMicro()
	put := sinks.PutMessage{Message: m}
	sub := sinks.PutSub{Client: client, Filter: filter, QoS: 1, Stamp: at}
	position := sinks.PutAcked{Client: client, Topic: filter.String(), Message: m.ID, Stamp: at + 1000}
	connected := sinks.PutClient{Client: client, Up: sinks.ClientUp{Node: "node", OnlineAt: PageTime, Stamp: at}}
	query := sinks.Query{Topic: m.Topic, Until: event.LastIDAt(PageTime.Add(time.Hour)), Limit: 500}
	messages := func(ctx context.Context, r sinks.Reader) error {
		_, err := r.Messages(ctx, query)
		return err
	}
	return []Action{
		{Name: "on_message_publish", Ops: []sinks.Op{put}},
		{Name: "on_message_store", Ops: []sinks.Op{sinks.PutMessage{Message: m, History: true}}},
		{
			Name: "on_message_acked_for_queue", Before: []sinks.Op{put},
			Ops: []sinks.Op{
				sinks.DeleteMessage{Topic: m.Topic, ID: m.ID, Stamp: at + 1000},
				sinks.PutAcked{Client: client, Topic: m.Topic.String(), Message: m.ID, Stamp: at},
			},
		},
		{Name: "on_message_fetch_for_queue", Before: []sinks.Op{put}, Read: func(ctx context.Context, r sinks.Reader) error {
			if err := messages(ctx, r); err != nil {
				return err
			}
			newest := query
			newest.Newest, newest.Limit = true, 10
			_, err := r.Messages(ctx, newest)
			return err
		}},
		{Name: "Wildcards", Before: []sinks.Op{put}, Read: func(ctx context.Context, r sinks.Reader) error {
			_, err := r.Topics(ctx, mustFilter("t/+"), event.Topic{}, 500)
			return err
		}},
		{Name: "on_message_retain", Ops: []sinks.Op{sinks.PutRetained{Message: retained}}},
		{
			Name: "on_retain_delete", Before: []sinks.Op{sinks.PutRetained{Message: retained}},
			Ops: []sinks.Op{sinks.DeleteRetained{Topic: m.Topic, Stamp: at + 1000}},
		},
		{Name: "on_retain_lookup", Before: []sinks.Op{sinks.PutRetained{Message: retained}}, Read: func(ctx context.Context, r sinks.Reader) error {
			if _, err := r.Retained(ctx, mustFilter("t/1"), event.Topic{}, 500); err != nil {
				return err
			}
			_, err := r.Retained(ctx, mustFilter("t/+"), event.Topic{}, 500)
			return err
		}},
		{Name: "on_message_fetch_for_pubsub", Before: []sinks.Op{put}, Read: func(ctx context.Context, r sinks.Reader) error {
			if _, err := r.Positions(ctx, client); err != nil {
				return err
			}
			return messages(ctx, r)
		}},
		{Name: "on_message_acked_for_pubsub", Ops: []sinks.Op{position}},
		{
			Name: "on_acked_delete", Before: []sinks.Op{position},
			Ops: []sinks.Op{sinks.DeleteAcked{Client: client, Topic: filter.String(), Stamp: at + 2000}},
		},
		{Name: "on_client_connected", Ops: []sinks.Op{connected}},
		{
			Name: "on_client_disconnected", Before: []sinks.Op{connected},
			Ops: []sinks.Op{sinks.PutClient{Client: client, Down: sinks.ClientDown{OfflineAt: PageTime.Add(time.Second), Stamp: at + 1}}},
		},
		{Name: "on_subscribe_store", Ops: []sinks.Op{sub}},
		{
			Name: "on_unsubscribe_delete", Before: []sinks.Op{sub},
			Ops: []sinks.Op{sinks.DeleteSub{Client: client, Filter: filter, Stamp: at + 1000}},
		},
		{Name: "on_subscribe_lookup", Before: []sinks.Op{sub}, Read: func(ctx context.Context, r sinks.Reader) error {
			_, err := r.Subs(ctx, client)
			return err
		}},
	}
}

var section = regexp.MustCompile(`(?m)^#+ (.+)$`)

// Page compares the code blocks of one language on the page on actions with what a store sends, by the headings that they stand
// below: not one may be missing, differ, or be there without being sent. With update it writes what stands in the blocks anew.
func Page(t *testing.T, language string, update bool, want map[string]string) {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	block := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	got := map[string]string{}
	var out strings.Builder
	at, heads := 0, section.FindAllStringSubmatchIndex(text, -1)
	for _, m := range block.FindAllStringSubmatchIndex(text, -1) {
		i, _ := slices.BinarySearchFunc(heads, m[0], func(h []int, at int) int { return h[0] - at })
		if i == 0 {
			t.Fatalf("a block of %s stands above all headings", language)
		}
		name := strings.Trim(text[heads[i-1][2]:heads[i-1][3]], "`")
		if _, ok := got[name]; ok {
			t.Errorf("%s has two blocks of %s", name, language)
		}
		got[name] = text[m[2]:m[3]]
		out.WriteString(text[at:m[2]] + want[name])
		at = m[3]
	}
	out.WriteString(text[at:])
	if update {
		if err := os.WriteFile(page, []byte(out.String()), 0o644); err != nil { //nolint:gosec // a page for all to read
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/actions.md shows something else than is sent; run the test with -update (-sent +shown):\n%s", d)
	}
}

// Once are the texts, each once, in the order in which they come first.
func Once(texts []string) []string {
	var out []string
	for _, s := range texts {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Statements sets SQL for the page: one statement after the other, in lines that can be read.
func Statements(texts []string) string {
	const width = 120
	var b strings.Builder
	for _, text := range Once(texts) {
		n := 0
		for i, word := range strings.Fields(text) {
			switch {
			case i == 0:
			case n+1+len(word) > width:
				b.WriteString("\n   ")
				n = 3
				fallthrough
			default:
				b.WriteByte(' ')
				n++
			}
			b.WriteString(word)
			n += len(word)
		}
		b.WriteString(";\n")
	}
	return b.String()
}
