package mqtt_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
)

func TestAnEnvelopeOpensWithEitherKeyAndWithNoOther(t *testing.T) {
	t.Parallel()
	old, both := secretOf(t, keyA), secretOf(t, keyB, keyA)
	id, topics := eventtest.ID(t, "000660E2BFC3B3B2F49E000001AD0001"), []event.Topic{}
	for _, topic := range []string{"t", "/", "t//1", "$x/y", "a%2Fb/é"} {
		topics = append(topics, eventtest.Topic(t, topic))
	}
	other := secretOf(t, keyB)
	rapid.Check(t, func(t *rapid.T) {
		client, err := event.ParseClientID(rapid.StringMatching(`[a-z/+#%é 😀]{1,12}`).Draw(t, "client"))
		if err != nil {
			t.Skip(err)
		}
		want := mqtt.Envelope{Message: id, Client: client, Topic: rapid.SampledFrom(topics).Draw(t, "topic")}
		payload := rapid.SliceOf(rapid.Byte()).Draw(t, "payload")
		sealed, err := old.Seal(want, payload)
		if err != nil {
			t.Fatal(err)
		}
		got, err := both.Open(sealed.String(), payload)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v", got, err)
		}
		if _, err := other.Open(sealed.String(), payload); err == nil {
			t.Fatal("opens with another key")
		}
		if _, err := both.Open(sealed.String(), append(payload, 0)); err == nil {
			t.Fatal("opens with another payload")
		}
		b := []byte(sealed.String())
		b[rapid.IntRange(0, len(b)-1).Draw(t, "changed at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
		if e, err := both.Open(string(b), payload); err == nil {
			t.Fatalf("opens when changed: %+v", e)
		}
	})
}

// TestNoPropertyOfAReplayMakesAnEnvelope: devices see those.
func TestNoPropertyOfAReplayMakesAnEnvelope(t *testing.T) {
	t.Parallel()
	s := secretOf(t, keyA)
	m := outgo(t, "t/1", "x")
	for _, p := range s.Properties("c", "t/1", m) {
		if _, err := s.Open(mqtt.EnvelopePrefix+p.Value+"/"+m.ID.String()+"/c/t/1", m.Payload); err == nil {
			t.Errorf("%s opens an envelope", p.Key)
		}
	}
}

func TestAnEnvelopeTooLongForATopicIsAnError(t *testing.T) {
	t.Parallel()
	e := mqtt.Envelope{Message: eventtest.ID(t, "000660E2BFC3B3B2F49E000001AD0001"), Client: "c", Topic: eventtest.Topic(t, strings.Repeat("x", 65535))}
	if _, err := secretOf(t, keyA).Seal(e, nil); err == nil {
		t.Error("no error")
	}
	if _, err := (mqtt.Secret{}).Seal(e, nil); err == nil {
		t.Error("no error without a secret")
	}
}

func FuzzOpenEnvelope(f *testing.F) {
	s := secretOf(f, keyA)
	f.Add("$offline/AAAAAAAAAAAAAAAAAAAAAA/000660E2BFC3B3B2F49E000001AD0001/c/t/1", []byte("x"))
	f.Add("$offline////", []byte{})
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		if e, err := s.Open(topic, payload); err == nil {
			if sealed, err := s.Seal(e, payload); err != nil || sealed.String() != topic {
				t.Fatalf("%q opens, and is sealed again as %q, %v", topic, sealed, err)
			}
		}
	})
}
