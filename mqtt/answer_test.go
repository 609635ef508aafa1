package mqtt_test

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
)

func answers(t *testing.T, keys ...string) mqtt.Answers {
	t.Helper()
	topic, err := mqtt.ParseFetchTopic(mqtt.DefaultAnswerTopic)
	if err != nil {
		t.Fatal(err)
	}
	return mqtt.Answers{Topic: topic, Secret: secretOf(t, keys...)}
}

func TestAnswerCountsForItsClientAndMessageOnly(t *testing.T) {
	t.Parallel()
	a, topic := answers(t, keyA), eventtest.Topic(t, "t/1.x")
	id, other := event.IDOf(1795376856413106, 9, 1), event.IDOf(1795376856413106, 9, 2)
	token := a.Token("dev", topic, id)
	d := plain(t)
	d.Answers = a
	replay := d.Secret.Properties("dev", "t/1.x", outgo(t, "t/1.x", ""))
	var mark string
	for _, u := range replay {
		if u.Key == mqtt.PropMAC {
			mark = u.Value
		}
	}
	for sentence, c := range map[string]struct {
		to             string
		data           string // correlation data
		payload        string
		client         event.ClientID // "" = refused
		refusedBecause string
	}{
		"the correlation data":              {"offline/ack/dev", string(token), "anything", "dev", ""},
		"it as payload":                     {"offline/ack/dev", "", string(token), "dev", ""},
		"the correlation data first":        {"offline/ack/dev", "x", string(token), "", "no correlation data of ours"},
		"another client's":                  {"offline/ack/dew", string(token), "", "", "of another client"},
		"another message's id":              {"offline/ack/dev", strings.Replace(string(token), id.String(), other.String(), 1), "", "", "not ours"},
		"the id in lower case":              {"offline/ack/dev", strings.ToLower(id.String()) + string(token[32:]), "", "", "not ours"},
		"another topic":                     {"offline/ack/dev", string(token) + "y", "", "", "not ours"},
		"a key that is not ours":            {"offline/ack/dev", string(answers(t, keyB).Token("dev", topic, id)), "", "", "not ours"},
		"the mark of a replay":              {"offline/ack/dev", id.String() + "." + mark + ".t/1.x", "", "", "not ours"},
		"the id alone":                      {"offline/ack/dev", "", id.String(), "", "proves nothing"},
		"nothing":                           {"offline/ack/dev", "", "", "", "no correlation data of ours"},
		"half of it":                        {"offline/ack/dev", string(token[:40]), "", "", "no correlation data of ours"},
		"a client id that needs an escape":  {"offline/ack/a%2Fb", string(a.Token("a/b", topic, id)), "", "a/b", ""},
		"a client id escaped another way":   {"offline/ack/%64ev", string(token), "", "published", ""},
		"a level more, which is no such":    {"offline/ack/dev/x", string(token), "", "published", ""},
		"another topic, which is a publish": {"offline/ack", string(token), "", "published", ""},
	} {
		events, err := d.Decode(mqtt.Packet{Topic: c.to, Payload: []byte(c.payload), Properties: event.Properties{CorrelationData: []byte(c.data)}})
		switch {
		case c.client == "published":
			if _, ok := events[0].(event.Published); err != nil || !ok {
				t.Errorf("%s: got %v, %v; want a publish", sentence, events, err)
			}
		case c.client != "":
			want := []event.Event{event.Acked{Head: event.Head{Source: d.Source}, Topic: topic, Client: c.client, Message: id, Replayed: true, Watched: true}}
			for i, e := range events {
				if ack, ok := e.(event.Acked); ok {
					ack.ID, ack.At = event.ID{}, time.Time{}
					events[i] = ack
				}
			}
			if diff := cmp.Diff(want, events, cmp.AllowUnexported(event.Topic{}, event.ID{})); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", sentence, err, diff)
			}
		default:
			if len(events) > 0 || told(d, mqtt.Packet{Topic: c.to, Payload: []byte(c.payload), Properties: event.Properties{CorrelationData: []byte(c.data)}}) != "refused_answer" ||
				!strings.Contains(err.Error(), c.refusedBecause) {
				t.Errorf("%s: got %v, %v; want a refusal with %q", sentence, events, err, c.refusedBecause)
			}
		}
	}
}

func TestAnswersOutliveARotationOfKeys(t *testing.T) {
	t.Parallel()
	topic, id := eventtest.Topic(t, "t"), event.IDOf(1, 2, 3)
	for sentence, c := range map[string]struct {
		by, of mqtt.Answers
		want   bool
	}{
		"the new process reads the old token": {answers(t, keyB, keyA), answers(t, keyA), true},
		"the first key makes it":              {answers(t, keyB), answers(t, keyB, keyA), true},
		"the old one is over":                 {answers(t, keyB), answers(t, keyA), false},
	} {
		d := plain(t)
		d.Answers = c.by
		_, err := d.Decode(mqtt.Packet{Topic: "offline/ack/c", Payload: c.of.Token("c", topic, id)})
		if (err == nil) != c.want {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}

// What the message itself asked for is not lost: who wants to answer its sender finds it in user properties.
func TestReplayAsksForAnAnswerAndKeepsWhatTheMessageAsked(t *testing.T) {
	t.Parallel()
	got := make(chan *packets.Publish, 2)
	f := &fake{publish: func(c net.Conn, p *packets.Publish) {
		got <- p
		puback(c, p, 0)
	}}
	a := answers(t, keyA)
	p, _ := startPublisher(t, f.start(t), func(c *mqtt.PublisherConfig) { c.Answers = a })
	m := outgo(t, "t/1", "x")
	m.Properties = event.Properties{
		ResponseTopic: "re/1", CorrelationData: []byte{0, 255}, ContentType: "text/plain", User: []event.UserProperty{{Key: "k", Value: "v"}},
	}
	if _, err := p.Publish(contextOf(t), "dev/1", m); err != nil {
		t.Fatal(err)
	}
	sent := <-got
	if r, want := sent.Properties.ResponseTopic, "offline/ack/dev%2F1"; r != want {
		t.Errorf("response topic %q, want %q", r, want)
	}
	if want := a.Token("dev/1", m.Topic, m.ID); !bytes.Equal(sent.Properties.CorrelationData, want) {
		t.Errorf("correlation data %q, want %q", sent.Properties.CorrelationData, want)
	}
	var user []string
	for _, u := range sent.Properties.User {
		user = append(user, u.Key)
	}
	want := []string{
		mqtt.PropMessageID, mqtt.PropClientID, mqtt.PropArrived, mqtt.PropRemaining, mqtt.PropMAC, mqtt.PropResponseTopic, mqtt.PropCorrelationData, "k",
	}
	if diff := cmp.Diff(want, user); diff != "" {
		t.Errorf("user properties (-want +got):\n%s", diff)
	}
	if u := sent.Properties.User; u[5].Value != "re/1" || u[6].Value != "AP8=" || sent.Properties.ContentType != "text/plain" {
		t.Errorf("the message's own: %+v", u)
	}
	if len(m.Properties.User) != 1 {
		t.Errorf("the message was changed: %+v", m.Properties)
	}
	plainMessage := outgo(t, "t/2", "x")
	if _, err := p.Publish(contextOf(t), "dev/1", plainMessage); err != nil {
		t.Fatal(err)
	}
	if sent := <-got; len(sent.Properties.User) != 5 {
		t.Errorf("a message without its own: %+v", sent.Properties.User)
	}
	long := outgo(t, strings.Repeat("l", 65_500), "x")
	if _, err := p.Publish(contextOf(t), "dev", long); !fault.IsPoison(err) {
		t.Errorf("a topic that leaves no room for the token: %v, want poison", err)
	}
	if _, err := mqtt.NewPublisher(mqtt.PublisherConfig{Server: mqtt.Server{URLs: []string{"mqtt://x"}}, Prefix: "p", Answers: mqtt.Answers{Topic: a.Topic}}); err == nil {
		t.Error("answers without a secret were taken")
	}
}

// Ten thousand answers that are forged in some way: none acknowledges anything.
func TestTenThousandForgedAnswersAcknowledgeNothing(t *testing.T) {
	t.Parallel()
	d, topic := plain(t), eventtest.Topic(t, "t/1")
	d.Answers = answers(t, keyA)
	id := event.IDOf(1795376856413106, 9, 1)
	good := d.Answers.Token("dev", topic, id)
	for i := range 10_000 {
		b := bytes.Clone(good)
		if i < 8*len(b) {
			b[i/8] ^= 1 << (i % 8) // each bit once
		} else {
			b = append(b[:i%len(b)], byte(i>>3))
		}
		if events, err := d.Decode(mqtt.Packet{Topic: "offline/ack/dev", Payload: b}); err == nil {
			t.Fatalf("%q was taken as %v", b, events)
		}
	}
	if _, err := d.Decode(mqtt.Packet{Topic: "offline/ack/dev", Payload: good}); err != nil {
		t.Errorf("the good one: %v", err)
	}
}
