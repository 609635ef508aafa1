package mqtt_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// What the page for devices says of the size of replays is what goes over the wire.
func TestThePageForDevicesCountsTheBytesOfReplays(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/devices.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(b)), " ") // lines may break anywhere
	secret, err := mqtt.NewSecret([]byte("a key of enough bytes"))
	if err != nil {
		t.Fatal(err)
	}
	const client = event.ClientID("dev1")
	m := pipeline.Outgo{QoS: 1, Message: sinks.Message{
		ID: event.IDOf(1_700_000_000_000_000, 1, 1), Topic: eventtest.Topic(t, "t/1"), Payload: []byte("hello"),
		Arrived: time.UnixMilli(1_700_000_000_000), Expires: time.Now().Add(time.Hour),
	}}
	must := func(want string) {
		if !strings.Contains(page, want) {
			t.Errorf("docs/devices.md does not say: %s", want)
		}
	}
	const idLength = len(client)
	sum := 0
	for _, p := range secret.Properties(client, m.Topic.String(), m) {
		n := 1 + 2 + len(p.Key) + 2 + len(p.Value) // MQTT 5.0 §2.2.2.2, §1.5.7
		sum += n
		bytes := fmt.Sprint(n)
		switch p.Key {
		case mqtt.PropClientID:
			bytes = fmt.Sprintf("%d + the client id", n-idLength)
		case mqtt.PropRemaining:
			bytes = fmt.Sprintf("%d + its digits", n-len(p.Value))
		}
		must(fmt.Sprintf("| `%s` | %s |", p.Key, bytes))
	}
	size := func(change func(*mqtt.PublisherConfig)) int {
		cfg := mqtt.PublisherConfig{Server: mqtt.Server{URLs: []string{"mqtt://127.0.0.1:1883"}}, Prefix: "restante-", Secret: secret}
		if change != nil {
			change(&cfg)
		}
		p, err := mqtt.NewPublisher(cfg)
		if err != nil {
			t.Fatal(err)
		}
		n, err := p.Size(client, m)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	out := &paho.Publish{Topic: "t/1", QoS: 1, Payload: m.Payload}
	live, err := out.Packet().WriteTo(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	const expiry = 5
	replay := size(nil)
	if lengths := replay - int(live) - sum - expiry; lengths != 2 { // of the properties, and of the packet, one byte more each
		t.Errorf("the properties have %d bytes, and the packet %d more than a live one of %d", sum, replay-int(live), live)
	}
	must(fmt.Sprintf("| message expiry, where the message has one | %d |", expiry))
	prefix, err := mqtt.ParseTemplate(mqtt.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	prefixed := size(func(c *mqtt.PublisherConfig) { c.Template = prefix }) - replay
	must(fmt.Sprintf("| `delivery.to: prefix`, the longer topic | %d + the client id |", prefixed-idLength))
	ack, err := mqtt.ParseFetchTopic(mqtt.DefaultAnswerTopic)
	if err != nil {
		t.Fatal(err)
	}
	asked := size(func(c *mqtt.PublisherConfig) { c.Answers = mqtt.Answers{Topic: ack, Secret: secret} }) - replay
	must(fmt.Sprintf("| `delivery.evidence: app`, response topic and correlation data | %d + the client id + the topic |", asked-idLength-len("t/1")))
	must(fmt.Sprintf("`hello` on `t/1` to `dev1` takes %d bytes live and %d replayed", live, replay))
}
