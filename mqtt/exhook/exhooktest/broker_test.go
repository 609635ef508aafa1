package exhooktest_test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/mqtt/exhook/exhooktest"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestTheStoryIsToldToEachVersion(t *testing.T) {
	t.Parallel()
	for version, c := range map[int]struct{ service, share, left, properties string }{
		1: {service: "/emqx.exhook.v1.HookProvider/", share: `s/# "g"`, left: "s/#"},
		2: {service: "/emqx.exhook.v2.HookProvider/", share: `$share/g/s/# ""`, left: "$share/g/s/#"},
		3: {
			service: "/emqx.exhook.v3.HookProvider/", share: `$share/g/s/# ""`, left: "$share/g/s/#",
			properties: " Message-Expiry-Interval=60 Content-Type=text Response-Topic=r Correlation-Data=c k=v k=w",
		},
	} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			p := provide(t)
			b := start(t, exhooktest.Options{Version: version}, p)
			device := dial(t, b, mqtttest.Options{ID: "device", Version: mqtttest.V5, Username: "u", Password: "p4ss"})
			subscribe(t, device, 1|4|8|2<<4, "t/1")
			subscribe(t, device, 2, "$share/g/s/#")
			p.await(4)
			pub := dial(t, b, mqtttest.Options{ID: "pub", Version: mqtttest.V5})
			full := message("t/1", "one", 1)
			full.Expiry = time.Minute
			full.Properties = event.Properties{
				User:        []event.UserProperty{{Key: "k", Value: "v"}, {Key: "k", Value: "w"}},
				ContentType: "text", ResponseTopic: "r", CorrelationData: []byte("c"),
			}
			publish(t, pub, full)
			p.await(7)
			publish(t, pub, message("s/1", "\x00\xff", 2))
			p.await(9)
			publish(t, pub, message("t/1", "to QoS 1", 2))
			p.await(11)
			publish(t, pub, message("t/1", "no ack", 0))
			p.await(12)
			publish(t, pub, message("u/1", "nobody", 1))
			p.await(14)
			if _, err := device.Unsubscribe(within(t), "$share/g/s/#"); err != nil {
				t.Fatal(err)
			}
			device.Disconnect()
			p.await(16)
			pub.Cut()
			p.wants(
				"OnProviderLoaded",
				"OnClientConnected device u",
				`OnSessionSubscribed device t/1 "" qos 1 rh 2 rap 1 nl 1`,
				"OnSessionSubscribed device "+c.share+" qos 2 rh 0 rap 0 nl 0",
				"OnClientConnected pub ",
				`OnMessagePublish #1 t/1 "one" qos 1 from pub`+c.properties,
				`OnMessageAcked device #1 t/1 "one" qos 1 from pub`,
				`OnMessagePublish #2 s/1 "\x00\xff" qos 2 from pub`,
				`OnMessageAcked device #2 s/1 "\x00\xff" qos 2 from pub`,
				`OnMessagePublish #3 t/1 "to QoS 1" qos 2 from pub`,
				`OnMessageAcked device #3 t/1 "to QoS 1" qos 1 from pub`,
				`OnMessagePublish #4 t/1 "no ack" qos 0 from pub`,
				`OnMessagePublish #5 u/1 "nobody" qos 1 from pub`,
				`OnMessageDropped #5 u/1 "nobody" qos 1 from pub no_subscribers`,
				"OnSessionUnsubscribed device "+c.left,
				"OnClientDisconnected device normal",
				"OnClientDisconnected pub tcp_closed",
			)
			for _, told := range p.await(17) {
				if !strings.HasPrefix(told.path, c.service) {
					t.Errorf("called %s", told.path)
				}
				if !bytes.Contains(told.body, []byte("emqxcl")) {
					t.Errorf("%s has no meta: %q", told.path, told.body)
				}
				if has, want := bytes.Contains(told.body, []byte("p4ss")), strings.Contains(lines(t, []call{told})[0], " device "); has != want {
					t.Errorf("password in %q: %v, want %v", told.body, has, want)
				}
			}
			if b.Failed() != 0 || b.Puzzled() != 0 {
				t.Errorf("%d calls failed, %d answers puzzled", b.Failed(), b.Puzzled())
			}
		})
	}
}

func TestOnlyRegisteredHooksAndTopicsAreTold(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.publish t/# $offline/#", "message.acked t/+", "session.subscribed no/such/topic")
	wide := provide(t, "message.publish #")
	b := start(t, exhooktest.Options{}, p, wide)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	subscribe(t, device, 1, "#", "+/x/1")
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	for _, topic := range []string{"t/1", "u/1", "t/1/2", "$offline/x/1"} {
		publish(t, pub, message(topic, "m", 1))
	}
	for _, want := range []string{"t/1", "u/1", "t/1/2"} { // no wildcard reaches $offline
		if got := receive(t, device); got.Topic != want {
			t.Errorf("got %q, want %q", got.Topic, want)
		}
	}
	if got := device.Quiet(100 * time.Millisecond); len(got) != 0 {
		t.Errorf("got %+v", got)
	}
	device.Disconnect()
	pub.Disconnect()
	seen := map[string]int{}
	for _, line := range lines(t, p.await(7)) {
		seen[line]++
	}
	want := map[string]int{
		"OnProviderLoaded": 1,
		`OnSessionSubscribed device # "" qos 1 rh 0 rap 0 nl 0`:     1,
		`OnSessionSubscribed device +/x/1 "" qos 1 rh 0 rap 0 nl 0`: 1,
		`OnMessagePublish #1 t/1 "m" qos 1 from pub`:                1,
		`OnMessageAcked device #1 t/1 "m" qos 1 from pub`:           1,
		`OnMessagePublish #2 t/1/2 "m" qos 1 from pub`:              1,
		`OnMessagePublish #3 $offline/x/1 "m" qos 1 from pub`:       1,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	wide.wants("OnProviderLoaded", `OnMessagePublish #1 t/1 "m" qos 1 from pub`, `OnMessagePublish #2 u/1 "m" qos 1 from pub`, `OnMessagePublish #3 t/1/2 "m" qos 1 from pub`)
}

func TestNothingOfSYSIsTold(t *testing.T) {
	t.Parallel()
	p := provide(t)
	b := start(t, exhooktest.Options{}, p)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	subscribe(t, device, 1, "$SYS/#")
	will := message("$SYS/gone", "away", 1)
	other := message("gone", "away", 1)
	dial(t, b, mqtttest.Options{ID: "one", Will: &will}).Cut()
	for got := receive(t, device); got.Topic != "$SYS/gone"; got = receive(t, device) { // the broker's own come too
		if !strings.HasPrefix(got.Topic, "$SYS/") {
			t.Errorf("got %+v", got)
		}
	}
	p.await(5)
	dial(t, b, mqtttest.Options{ID: "two", Will: &other}).Cut()
	p.wants(
		"OnProviderLoaded", "OnClientConnected device ", `OnSessionSubscribed device $SYS/# "" qos 1 rh 0 rap 0 nl 0`,
		"OnClientConnected one ", "OnClientDisconnected one tcp_closed", "OnClientConnected two ",
		`OnMessagePublish #1 gone "away" qos 1 from two`, `OnMessageDropped #1 gone "away" qos 1 from two no_subscribers`,
		"OnClientDisconnected two tcp_closed",
	)
}

func TestNeitherPUBACKNorDeliveryComesBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.publish")
	release := make(chan struct{})
	p.answer = func([]byte) ([]byte, error) {
		<-release
		return ignore, nil
	}
	b := start(t, exhooktest.Options{}, p)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	subscribe(t, device, 1, "t/1")
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	acked := make(chan error, 1)
	go func() { acked <- pub.Publish(within(t), message("t/1", "m", 1)) }()
	p.await(2)
	if got := device.Quiet(200 * time.Millisecond); len(got) != 0 {
		t.Errorf("before the answer came %+v", got)
	}
	select {
	case err := <-acked:
		t.Errorf("PUBACK before the answer: %v", err)
	default:
	}
	close(release)
	if err := <-acked; err != nil {
		t.Error(err)
	}
	receive(t, device)
}

// puback publishes at QoS 1 on a socket and returns the bytes of the answer.
func puback(t *testing.T, addr string, version byte, topic, payload string) []byte {
	t.Helper()
	conn, err := (&net.Dialer{Deadline: time.Now().Add(patience)}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // all is read
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	packet := func(typ byte, parts ...string) {
		body := strings.Join(parts, "")
		if _, err := conn.Write(append([]byte{typ, byte(len(body))}, body...)); err != nil {
			t.Fatal(err)
		}
	}
	text := func(s string) string { return string([]byte{0, byte(len(s))}) + s }
	none := ""
	if version == mqtttest.V5 {
		none = "\x00"
	}
	answer := func() []byte {
		head := make([]byte, 2)
		if _, err := conn.Read(head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, head[1])
		if _, err := conn.Read(body); err != nil {
			t.Fatal(err)
		}
		return append(head, body...)
	}
	packet(0x10, text("MQTT"), string([]byte{version, 2, 0, 60}), none, text("pub"))
	answer()
	packet(0x32, text(topic), "\x01\x07", none, payload)
	return answer()
}

func TestThePublishBecomesWhatTheAnswerSays(t *testing.T) {
	t.Parallel()
	const stop, goOn = 2, 0
	delivered := []string{"t/1 one 1"}
	for sentence, c := range map[string]struct {
		answer          []byte
		err             error
		want            []string // topic, payload and QoS of the deliveries
		nobody          bool
		failed, puzzled int
	}{
		"IGNORE leaves it":                        {answer: ignore, want: delivered},
		"CONTINUE without a message leaves it":    {answer: []byte{}, want: delivered, puzzled: 1},
		"STOP without a message leaves it":        {answer: []byte{8, 2}, want: delivered, puzzled: 1},
		"CONTINUE with a message changes it":      {answer: valued(goOn, 1, "t/2", "two"), want: []string{"t/2 two 1"}},
		"STOP with a message changes it":          {answer: valued(stop, 1, "t/2", "two"), want: []string{"t/2 two 1"}},
		"the QoS is that of the answer":           {answer: valued(stop, 0, "t/2", "two"), want: []string{"t/2 two 0"}},
		"it may be allowed in words":              {answer: valued(stop, 1, "t/1", "one", "allow_publish", "true"), want: delivered},
		"other headers mean nothing":              {answer: valued(stop, 1, "t/1", "one", "username", "false"), want: delivered},
		"one that is not allowed reaches nobody":  {answer: valued(stop, 1, "t/1", "one", "username", "u", "allow_publish", "false"), nobody: true},
		"it may be sent where nobody is":          {answer: valued(stop, 1, "u/1", "one"), nobody: true},
		"an error leaves it":                      {err: status.Error(codes.Unavailable, "away"), want: delivered, failed: 1},
		"an answer that cannot be read leaves it": {answer: []byte{8}, want: delivered, failed: 1},
	} {
		for _, version := range []byte{mqtttest.V311, mqtttest.V5} {
			t.Run(fmt.Sprint(sentence, " ", version), func(t *testing.T) {
				t.Parallel()
				p := provide(t, "message.publish t/1")
				p.answer = func([]byte) ([]byte, error) { return c.answer, c.err }
				b := start(t, exhooktest.Options{}, p)
				device := dial(t, b, mqtttest.Options{ID: "device", Version: version})
				subscribe(t, device, 1, "t/#")
				want := []byte{0x40, 2, 1, 7}
				if got := puback(t, b.Addr(), version, "t/1", "one"); c.nobody && version == mqtttest.V5 {
					if len(got) < 5 || got[0] != 0x40 || got[3] != 7 || got[4] != 0x10 {
						t.Errorf("PUBACK % x, want reason code 0x10", got)
					}
				} else if !bytes.Equal(got, want) {
					t.Errorf("PUBACK % x, want % x", got, want)
				}
				publish(t, device, message("t/last", "", 1))
				var deliveries []string
				for m := receive(t, device); m.Topic != "t/last"; m = receive(t, device) {
					deliveries = append(deliveries, fmt.Sprintf("%s %s %d", m.Topic, m.Payload, m.QoS))
				}
				if diff := cmp.Diff(c.want, deliveries); diff != "" {
					t.Errorf("deliveries (-want +got):\n%s", diff)
				}
				if b.Failed() != c.failed || b.Puzzled() != c.puzzled {
					t.Errorf("%d calls failed and %d answers puzzled, want %d and %d", b.Failed(), b.Puzzled(), c.failed, c.puzzled)
				}
			})
		}
	}
}

// An ack has the id that OnMessagePublish told, and all else as it was delivered.
func TestAcksNameThePublishThatWasReadressed(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.publish $offline/#", "message.acked t/#")
	p.answer = func(publish []byte) ([]byte, error) {
		var r exhookpb.MessagePublishRequest
		if err := proto.Unmarshal(publish, &r); err != nil {
			return nil, err
		}
		return valued(2, 1, strings.TrimPrefix(string(r.Message.Topic), "$offline/"), string(r.Message.Payload)), nil
	}
	b := start(t, exhooktest.Options{Version: 2}, p)
	spy := dial(t, b, mqtttest.Options{ID: "spy"})
	subscribe(t, spy, 1, "$offline/#")
	device := dial(t, b, mqtttest.Options{ID: "device", Version: mqtttest.V5})
	subscribe(t, device, 1, "t/1")
	replayer := dial(t, b, mqtttest.Options{ID: "restante-1", Version: mqtttest.V5})
	m := message("$offline/t/1", "one", 1)
	m.Properties.User = []event.UserProperty{{Key: "k", Value: "v"}}
	publish(t, replayer, m)
	if got := receive(t, device); got.Topic != "t/1" || got.User("k") != "v" || got.QoS != 1 {
		t.Errorf("got %+v", got)
	}
	p.wants("OnProviderLoaded", `OnMessagePublish #1 $offline/t/1 "one" qos 1 from restante-1`, `OnMessageAcked device #1 t/1 "one" qos 1 from restante-1`)
	if got := spy.Quiet(100 * time.Millisecond); len(got) != 0 {
		t.Errorf("the envelope came: %+v", got)
	}
}
