package event_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/restante/restante/event"
)

func text(most int) *rapid.Generator[string] {
	return rapid.Map(rapid.StringN(1, most, -1), func(s string) string { return strings.ReplaceAll(s, "\x00", "␀") })
}

func drawTopic(t *rapid.T) event.Topic {
	s := rapid.OneOf(levels(), rapid.Map(text(40), strings.NewReplacer("+", "p", "#", "h").Replace)).Draw(t, "topic")
	topic, err := event.ParseTopic(s)
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

func drawFilter(t *rapid.T) event.Filter {
	s := levels("+", "#").Draw(t, "filter")
	if rapid.Bool().Draw(t, "shared") {
		s = "$share/" + rapid.StringMatching(`[^+#/\x00]{1,5}`).Draw(t, "group") + "/" + s
	}
	f, err := event.ParseFilter(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// drawTime is often near the clock of ingest, often anywhere, and unknown when it may be.
func drawTime(t *rapid.T, label string, unknown bool) time.Time {
	if unknown && rapid.Bool().Draw(t, label+" unknown") {
		return time.Time{}
	}
	ms := rapid.OneOf(rapid.Int64Range(0, 1<<52), rapid.Int64Range(now.UnixMilli()-400_000, now.UnixMilli()+400_000)).Draw(t, label)
	return time.UnixMilli(ms)
}

func drawProperties(t *rapid.T) event.Properties {
	p := event.Properties{
		ContentType: rapid.String().Draw(t, "content type"), ResponseTopic: rapid.String().Draw(t, "response topic"),
		PayloadFormat: rapid.ByteRange(0, 1).Draw(t, "payload format"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "user properties") {
		p.User = append(p.User, event.UserProperty{Key: rapid.String().Draw(t, "name"), Value: rapid.String().Draw(t, "value")})
	}
	if b := rapid.SliceOf(rapid.Byte()).Draw(t, "correlation data"); len(b) > 0 {
		p.CorrelationData = b
	}
	return p
}

func drawEvent(t *rapid.T) event.Event {
	head := event.Head{ID: drawID(t, "id"), Source: rapid.String().Draw(t, "source"), At: drawTime(t, "at", false)}
	client := event.ClientID(text(30).Draw(t, "client"))
	known := rapid.SampledFrom([]event.Known{event.Unknown, event.No, event.Yes})
	qos := event.QoS(rapid.ByteRange(0, 2).Draw(t, "qos"))
	switch rapid.IntRange(0, 8).Draw(t, "type") {
	case 0:
		e := event.Published{
			Head: head, Topic: drawTopic(t), QoS: qos, Retain: rapid.Bool().Draw(t, "retain"),
			Payload:    rapid.SliceOf(rapid.Byte()).Draw(t, "payload"),
			Expiry:     time.Duration(rapid.Int64Range(0, 1<<32-1).Draw(t, "expiry")) * time.Second,
			Properties: drawProperties(t),
		}
		if rapid.Bool().Draw(t, "has sender") {
			e.Sender = client
		}
		return e
	case 1:
		e := event.Acked{
			Head: head, Topic: drawTopic(t), Client: client, Replayed: rapid.Bool().Draw(t, "replayed"),
			Watched: rapid.Bool().Draw(t, "watched"),
		}
		which := rapid.IntRange(1, 3).Draw(t, "ids")
		if which&1 != 0 {
			e.Message = drawID(t, "message")
		}
		if which&2 != 0 {
			e.BrokerID = drawID(t, "broker id")
		}
		return e
	case 2:
		return event.Replayed{Head: head, Topic: drawTopic(t), Client: client, Message: drawID(t, "message"), BrokerID: drawID(t, "broker id")}
	case 3:
		e := event.Dropped{Head: head, Topic: drawTopic(t), Client: client, Reason: rapid.String().Draw(t, "reason")}
		if rapid.Bool().Draw(t, "has message") {
			e.Message = drawID(t, "message")
		}
		return e
	case 4:
		e := event.Subscribed{Head: head, Client: client, Filter: drawFilter(t), QoS: qos, New: known.Draw(t, "new")}
		if rapid.Bool().Draw(t, "has options") {
			e.Options = &event.SubOptions{
				RetainHandling:    rapid.ByteRange(0, 2).Draw(t, "rh"),
				RetainAsPublished: rapid.Bool().Draw(t, "rap"), NoLocal: rapid.Bool().Draw(t, "nl"),
			}
		}
		return e
	case 5:
		return event.Unsubscribed{Head: head, Client: client, Filter: drawFilter(t)}
	case 6:
		e := event.Connected{
			Head: head, Client: client, ConnectedAt: drawTime(t, "connected at", true), CleanStart: known.Draw(t, "clean start"),
			SessionPresent: known.Draw(t, "session present"), ExpiryInterval: -1, ReceiveMaximum: rapid.Uint16().Draw(t, "receive maximum"),
			Node: rapid.String().Draw(t, "node"), Username: rapid.String().Draw(t, "username"),
		}
		if rapid.Bool().Draw(t, "has expiry") {
			e.ExpiryInterval = time.Duration(rapid.Int64Range(0, 1<<32-1).Draw(t, "session expiry")) * time.Second
		}
		return e
	case 7:
		return event.Disconnected{
			Head: head, Client: client, Reason: rapid.String().Draw(t, "reason"),
			ConnectedAt: drawTime(t, "connected at", true), DisconnectedAt: drawTime(t, "disconnected at", true),
		}
	default:
		return event.ReplayContinued{
			Head: head, Client: client, Filter: drawFilter(t), QoS: qos, Bound: drawID(t, "bound"),
			Subscribe: rapid.Int64Range(0, 1<<62).Draw(t, "subscribe"), Slice: rapid.IntRange(1, 1<<30).Draw(t, "slice"),
			Rule: rapid.String().Draw(t, "rule"),
		}
	}
}

// throughKafka is what Kafka makes of a record: times in ms, and kafka-go reads empty values back as nil.
func throughKafka(w event.Wire) event.Wire {
	w.Key, w.Headers = bytes.Clone(w.Key), slices.Clone(w.Headers)
	w.Time = time.UnixMilli(w.Time.UnixMilli())
	if len(w.Value) == 0 {
		w.Value = nil
	}
	return w
}

func TestDecodeReadsBackWhatEncodeWrote(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := drawEvent(t)
		for _, r := range e.Routes() {
			w := event.Encode(e, r, now)
			if w.Value == nil || len(w.Key) == 0 {
				t.Fatalf("%s in %s has a nil value or no key", event.TypeOf(e), r.Kind)
			}
			if d := w.Time.Sub(now).Abs(); d > 5*time.Minute {
				t.Fatalf("the record's time is %v off", d)
			}
			got, err := event.Decode(r.Kind, throughKafka(w))
			if err != nil {
				t.Fatalf("%s in %s: %v", event.TypeOf(e), r.Kind, err)
			}
			if diff := cmp.Diff(readBack(e, r), got, sameEvent); diff != "" {
				t.Fatalf("%s in %s (-want +got):\n%s", event.TypeOf(e), r.Kind, diff)
			}
		}
	})
}

// FuzzDecode: whatever stands in Kafka, Decode does not panic, says why it refuses, and what it takes it can write again.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		g := readGolden(f, file)
		w := g.wire()
		f.Add(g.Topic == event.Messages, w.Key, w.Value, w.Time.UnixMilli(), strings.Join(g.Headers, "\x1e"))
	}
	f.Fuzz(func(t *testing.T, messages bool, key, value []byte, ms int64, headers string) {
		kind := event.Sessions
		if messages {
			kind = event.Messages
		}
		w := event.Wire{Key: key, Value: value, Time: time.UnixMilli(ms)}
		for h := range strings.SplitSeq(headers, "\x1e") {
			k, v, _ := strings.Cut(h, ": ")
			w.Headers = append(w.Headers, event.Header{Key: k, Value: []byte(v)})
		}
		e, err := event.Decode(kind, w)
		if err != nil {
			var malformed *event.MalformedError
			if e != nil || !errors.Is(err, event.ErrUnknownMajor) && (!errors.As(err, &malformed) || malformed.Field == "") {
				t.Fatalf("got %+v and %v", e, err)
			}
			return
		}
		i := slices.IndexFunc(e.Routes(), func(r event.Route) bool { return r.Kind == kind })
		if i < 0 {
			t.Fatalf("%s was read from %s, but has no route there", event.TypeOf(e), kind)
		}
		again, err := event.Decode(kind, throughKafka(event.Encode(e, e.Routes()[i], e.Meta().At)))
		if err != nil {
			t.Fatalf("written again, %+v is refused: %v", e, err)
		}
		if diff := cmp.Diff(e, again, sameEvent); diff != "" {
			t.Fatalf("written again it is another event (-want +got):\n%s", diff)
		}
	})
}
