package mqtt_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func outgo(t *testing.T, topic, payload string) pipeline.Outgo {
	t.Helper()
	now := time.Now()
	return pipeline.Outgo{QoS: 1, Remaining: 4, Message: sinks.Message{
		ID: event.IDOf(now.UnixMicro(), 9, 1), Topic: eventtest.Topic(t, topic), QoS: 1, Payload: []byte(payload), Arrived: now,
	}}
}

func set(props []event.UserProperty, key, value string) []event.UserProperty {
	props = slices.Clone(props)
	i := slices.IndexFunc(props, func(p event.UserProperty) bool { return p.Key == key })
	props[i].Value = value
	return props
}

func TestMACCoversAllThatTellsAReplay(t *testing.T) {
	t.Parallel()
	s, m := secretOf(t, keyA), outgo(t, "a/b", "payload")
	props := s.Properties("dev", "a/b", m)
	id, client, ok := s.Verify("a/b", []byte("payload"), props)
	if !ok || id != m.ID || client != "dev" {
		t.Fatalf("its own replay: got %v, %q, %v", id, client, ok)
	}
	other := outgo(t, "a/b", "payload")
	other.ID = event.IDOf(m.ID.Micros(), 9, 2)
	sum := props[slices.IndexFunc(props, func(p event.UserProperty) bool { return p.Key == mqtt.PropMAC })].Value
	for sentence, c := range map[string]struct {
		topic, payload string
		props          []event.UserProperty
	}{
		"another id":                         {"a/b", "payload", set(props, mqtt.PropMessageID, other.ID.String())},
		"an id in lower case":                {"a/b", "payload", set(props, mqtt.PropMessageID, "z"+m.ID.String()[1:])},
		"another client":                     {"a/b", "payload", set(props, mqtt.PropClientID, "dew")},
		"another topic":                      {"a/c", "payload", props},
		"another payload":                    {"a/b", "payloae", props},
		"no payload":                         {"a/b", "", props},
		"a byte moved from topic to payload": {"a/", "bpayload", props},
		"a copied MAC on another message":    {"a/b", "payload", set(secretOf(t, keyB).Properties("dev", "a/b", other), mqtt.PropMAC, sum)},
		"a MAC cut short":                    {"a/b", "payload", set(props, mqtt.PropMAC, sum[:len(sum)-4])},
		"a MAC with more behind":             {"a/b", "payload", set(props, mqtt.PropMAC, sum+"AAAA")},
		"no MAC":                             {"a/b", "payload", set(props, mqtt.PropMAC, "")},
		"no properties":                      {"a/b", "payload", nil},
		"another key":                        {"a/b", "payload", secretOf(t, keyB).Properties("dev", "a/b", m)},
	} {
		if _, _, ok := s.Verify(c.topic, []byte(c.payload), c.props); ok {
			t.Errorf("%s: verified", sentence)
		}
	}
}

func TestTwoKeysVerifyWhileRotatingAndTheFirstSigns(t *testing.T) {
	t.Parallel()
	m := outgo(t, "a", "x")
	before, during, after := secretOf(t, keyA), secretOf(t, keyB, keyA), secretOf(t, keyB)
	verifies := func(by, of mqtt.Secret) bool {
		_, _, ok := by.Verify("a", m.Payload, of.Properties("c", "a", m))
		return ok
	}
	for sentence, c := range map[string]struct{ got, want bool }{
		"both verify the old":           {verifies(during, before), true},
		"both verify the new":           {verifies(during, after), true},
		"the new key signs":             {verifies(after, during), true},
		"the old key no longer signs":   {verifies(before, during), false},
		"the old is over after":         {verifies(after, before), false},
		"no key verifies nothing":       {verifies(mqtt.Secret{}, before), false},
		"without a key nothing is ours": {verifies(during, mqtt.Secret{}), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v", sentence, c.got)
		}
	}
}

func TestPropertiesOfADeviceStandBehindOursAndAreNotTrusted(t *testing.T) {
	t.Parallel()
	s, m := secretOf(t, keyA), outgo(t, "a", "x")
	victim := s.Properties("victim", "a", outgo(t, "a", "x"))
	m.Properties.User = victim
	props := s.Properties("dev", "a", m)
	if diff := cmp.Diff(victim, props[len(props)-len(victim):]); diff != "" {
		t.Errorf("the device's own properties are changed (-want +got):\n%s", diff)
	}
	if _, client, ok := s.Verify("a", m.Payload, props); !ok || client != "dev" {
		t.Errorf("got client %q, %v; want that of the replay", client, ok)
	}
	unsigned := mqtt.Secret{}.Properties("dev", "a", m)
	if _, client, ok := s.Verify("a", m.Payload, unsigned); ok {
		t.Errorf("a device's MAC behind an unsigned replay was trusted for %q", client)
	}
}

func TestSecretFileIsMadeOnceForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	made, err := mqtt.LoadOrCreateSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o, want 600", got)
	}
	m := outgo(t, "a", "x")
	again, err := mqtt.LoadOrCreateSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := again.Verify("a", m.Payload, made.Properties("c", "a", m)); !ok {
		t.Error("the second load has another key")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v; want the secret only", entries, err)
	}
}

func TestSecretFileWithoutAUsableKeyIsRefusedAndKept(t *testing.T) {
	t.Parallel()
	for sentence, text := range map[string]string{
		"empty":                    "",
		"only white space":         " \n\t\n",
		"short":                    "fifteen bytes..\n",
		"a short second key":       keyA + "\nshort\n",
		"three keys":               keyA + "\n" + keyB + "\n" + keyA + "\n",
		"white space is no length": strings.Repeat(" ", 20) + "short",
	} {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := mqtt.LoadOrCreateSecret(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error that names the file", sentence, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%s: the file was changed to %q, %v", sentence, b, err)
		}
	}
	if _, err := mqtt.LoadSecret(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file was loaded")
	}
}

func FuzzVerify(f *testing.F) {
	s, err := mqtt.NewSecret([]byte(keyA))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a/b", []byte("x"), "00000000000000010000000000000001", "c", "AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("", []byte{}, "", "", "")
	f.Fuzz(func(t *testing.T, topic string, payload []byte, id, client, sum string) {
		_, _, ok := s.Verify(topic, payload, []event.UserProperty{
			{Key: mqtt.PropMessageID, Value: id}, {Key: mqtt.PropClientID, Value: client}, {Key: mqtt.PropMAC, Value: sum},
		})
		if ok {
			t.Errorf("forged: %q %q %q %q %q", topic, payload, id, client, sum)
		}
		parsed, err := event.ParseID(id)
		if err != nil || client == "" {
			return
		}
		m := pipeline.Outgo{Message: sinks.Message{ID: parsed, Payload: payload}}
		gotID, gotClient, ok := s.Verify(topic, payload, s.Properties(event.ClientID(client), topic, m))
		if !ok || gotID != parsed || string(gotClient) != client {
			t.Errorf("its own replay: got %v, %q, %v", gotID, gotClient, ok)
		}
	})
}
