package exhooktest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/mqtt/exhook/exhooktest"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestAServerThatHangsHoldsUpThePublisherOnly(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	p := provide(t, "message.publish t/#")
	hang := make(chan struct{})
	p.answer = func([]byte) ([]byte, error) {
		<-hang
		return ignore, nil
	}
	defer close(hang)
	b := start(t, exhooktest.Options{RequestTimeout: timeout}, p)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	subscribe(t, device, 1, "#")
	other := dial(t, b, mqtttest.Options{ID: "other"})
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	began := time.Now()
	acked := make(chan error, 1)
	go func() { acked <- pub.Publish(within(t), message("t/1", "held up", 1)) }()
	p.await(2)
	publish(t, other, message("u/1", "free", 1))
	if got := receive(t, device); string(got.Payload) != "free" {
		t.Errorf("got %+v", got)
	}
	if err := <-acked; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < timeout {
		t.Errorf("PUBACK after %v, want %v or more", took, timeout)
	}
	if got := receive(t, device); string(got.Payload) != "held up" {
		t.Errorf("got %+v", got)
	}
	if b.Failed() != 1 {
		t.Errorf("%d calls failed, want 1", b.Failed())
	}
}

func TestALostServerIsLoadedAgain(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	p := provide(t, "message.publish t/#")
	b := start(t, exhooktest.Options{RequestTimeout: timeout}, p)
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	publish(t, pub, message("t/1", "before", 1))
	p.end()
	publish(t, pub, message("t/1", "lost", 1)) // the broker goes on and forgets it
	began := time.Now()
	publish(t, pub, message("t/1", "lost after the time-out", 1)) // it knows by now that there is no connection
	if took := time.Since(began); took < timeout || b.Failed() != 2 {
		t.Errorf("PUBACK after %v with %d failed calls", took, b.Failed())
	}
	p.hooks = []string{"message.publish u/#"}
	p.begin()
	b.AwaitLoaded(2)
	publish(t, pub, message("t/1", "no more of the rules", 1))
	publish(t, pub, message("u/1", "after", 1))
	p.wants("OnProviderLoaded", `OnMessagePublish #1 t/1 "before" qos 1 from pub`, "OnProviderLoaded", `OnMessagePublish #2 u/1 "after" qos 1 from pub`)
}

func TestAServerMayComeLate(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.publish t/#")
	p.end()
	b := exhooktest.Start(t, exhooktest.Options{Servers: []string{p.addr}, AutoReconnect: 20 * time.Millisecond})
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	publish(t, pub, message("t/1", "nobody has asked yet", 1))
	p.begin()
	b.AwaitLoaded(1)
	publish(t, pub, message("t/1", "m", 1))
	p.wants("OnProviderLoaded", `OnMessagePublish #1 t/1 "m" qos 1 from pub`)
	if b.Failed() != 0 {
		t.Errorf("%d calls failed", b.Failed())
	}
}

func TestEachServerIsToldOfEachEvent(t *testing.T) {
	t.Parallel()
	first, second := provide(t), provide(t)
	b := start(t, exhooktest.Options{}, first, second)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	subscribe(t, device, 1, "t/1")
	publish(t, device, message("t/1", "m", 1))
	want := []string{
		"OnProviderLoaded", "OnClientConnected device ", `OnSessionSubscribed device t/1 "" qos 1 rh 0 rap 0 nl 0`,
		`OnMessagePublish #1 t/1 "m" qos 1 from device`, `OnMessageAcked device #1 t/1 "m" qos 1 from device`,
	}
	first.wants(want...)
	second.wants(want...)
}

func TestServersBehindOneAddressShareTheClients(t *testing.T) {
	t.Parallel()
	first, second := provide(t, "message.publish", "message.acked"), provide(t, "message.publish", "message.acked")
	b := start(t, exhooktest.Options{Shared: true, RequestTimeout: 5 * time.Second}, first, second)
	const devices = 20
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	tell := func() {
		for i := range devices {
			publish(t, pub, message(fmt.Sprint("t/", i), "m", 1))
		}
	}
	for i := range devices {
		subscribe(t, dial(t, b, mqtttest.Options{ID: fmt.Sprint("device-", i)}), 1, fmt.Sprint("t/", i))
	}
	tell()
	var acks [2][]string
	split := func(want int) (publishes [2]int) {
		for until := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			total := 0
			for i, p := range []*provider{first, second} {
				acks[i], publishes[i] = nil, 0
				p.mu.Lock()
				for _, line := range lines(t, p.told) {
					switch {
					case strings.HasPrefix(line, "OnMessagePublish"):
						publishes[i]++
					case strings.HasPrefix(line, "OnMessageAcked"):
						acks[i] = append(acks[i], strings.Fields(line)[1])
					}
				}
				p.mu.Unlock()
				total += publishes[i] + len(acks[i])
			}
			if total >= want || time.Now().After(until) {
				return publishes
			}
		}
	}
	publishes := split(2 * devices)
	if publishes[0]*publishes[1] != 0 || publishes[0]+publishes[1] != devices {
		t.Errorf("%v publishes of one client were told", publishes)
	}
	if len(acks[0]) == 0 || len(acks[1]) == 0 || len(acks[0])+len(acks[1]) != devices {
		t.Errorf("acks of %v", acks)
	}
	first.end()
	eventually(t, "the other one is told of all clients", func() bool {
		tell()
		split(0)
		slices.Sort(acks[1])
		return len(slices.Compact(acks[1])) == devices
	})
}

func TestOneServersAnswerIsTheNextOnesQuestion(t *testing.T) {
	t.Parallel()
	first, second, third := provide(t, "message.publish"), provide(t, "message.publish"), provide(t, "message.publish")
	first.answer = func([]byte) ([]byte, error) { return valued(0, 1, "t/2", "two"), nil }
	second.answer = func([]byte) ([]byte, error) { return valued(2, 1, "t/3", "three"), nil }
	b := start(t, exhooktest.Options{}, first, second, third)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	subscribe(t, device, 1, "#")
	publish(t, device, message("t/1", "one", 1))
	if got := receive(t, device); got.Topic != "t/3" || string(got.Payload) != "three" {
		t.Errorf("got %+v", got)
	}
	first.wants("OnProviderLoaded", `OnMessagePublish #1 t/1 "one" qos 1 from device`)
	second.wants("OnProviderLoaded", `OnMessagePublish #1 t/2 "two" qos 1 from device`)
	third.wants("OnProviderLoaded")
}

func TestAResumedSessionIsToldOnlyOfItsConnectionAndAcks(t *testing.T) {
	t.Parallel()
	p := provide(t)
	b := start(t, exhooktest.Options{}, p)
	keep := mqtttest.Options{ID: "device", KeepSession: true, ManualAck: true}
	device := dial(t, b, keep)
	subscribe(t, device, 1, "t/1")
	device.Disconnect()
	p.await(4)
	pub := dial(t, b, mqtttest.Options{ID: "pub"})
	publish(t, pub, message("t/1", "while away", 1)) // kept, so it is not dropped
	device = dial(t, b, keep)
	m := receive(t, device)
	again := dial(t, b, keep) // takes over, which tells of no disconnect
	<-device.Done()
	if m = receive(t, again); string(m.Payload) != "while away" {
		t.Errorf("got %+v", m)
	}
	if err := again.Ack(m); err != nil {
		t.Fatal(err)
	}
	p.await(9)
	again.Disconnect()
	p.wants(
		"OnProviderLoaded", "OnClientConnected device ", `OnSessionSubscribed device t/1 "" qos 1 rh 0 rap 0 nl 0`, "OnClientDisconnected device normal",
		"OnClientConnected pub ", `OnMessagePublish #1 t/1 "while away" qos 1 from pub`, "OnClientConnected device ", "OnClientConnected device ",
		`OnMessageAcked device #1 t/1 "while away" qos 1 from pub`, "OnClientDisconnected device normal",
	)
}

func TestARetainedDeliveryIsAckedByTheIdOfItsPublish(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.publish", "message.acked", "message.dropped")
	b := start(t, exhooktest.Options{}, p)
	device := dial(t, b, mqtttest.Options{ID: "device"})
	m := message("t/1", "kept", 1)
	m.Retain = true
	publish(t, device, m)
	subscribe(t, device, 1, "t/1")
	if got := receive(t, device); !got.Retain {
		t.Errorf("got %+v", got)
	}
	p.wants(
		"OnProviderLoaded", `OnMessagePublish #1 t/1 "kept" qos 1 from device`, `OnMessageDropped #1 t/1 "kept" qos 1 from device no_subscribers`,
		`OnMessageAcked device #1 t/1 "kept" qos 1 from device`,
	)
}

// A client counts the packet ids of its publishes without regard to those of what it receives.
func TestAPublishDoesNotPushOutADeliveryOfItsPacketID(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.acked")
	b := start(t, exhooktest.Options{}, p)
	device := dial(t, b, mqtttest.Options{ID: "device", ManualAck: true})
	subscribe(t, device, 1, "t/1")
	publish(t, dial(t, b, mqtttest.Options{ID: "pub"}), message("t/1", "m", 1))
	held := receive(t, device)
	own := message("u/1", "of its own", 1)
	own.ID = held.ID
	publish(t, device, own)
	if err := device.Ack(held); err != nil {
		t.Fatal(err)
	}
	p.wants("OnProviderLoaded", `OnMessageAcked device #1 t/1 "m" qos 1 from pub`)
}

// While a publish waits for its answer the client may receive something else.
func TestADeliveryDoesNotGetThePacketIDOfAPublishThatWaits(t *testing.T) {
	t.Parallel()
	p := provide(t, "message.publish slow", "message.acked")
	release := make(chan struct{})
	p.answer = func([]byte) ([]byte, error) {
		<-release
		return ignore, nil
	}
	b := start(t, exhooktest.Options{}, p)
	device := dial(t, b, mqtttest.Options{ID: "device", ManualAck: true})
	subscribe(t, device, 1, "t/1")
	own := message("slow", "of its own", 1)
	own.ID = 1 // the broker's first one as well
	acked := make(chan error, 1)
	go func() { acked <- device.Publish(within(t), own) }()
	p.await(2)
	publish(t, dial(t, b, mqtttest.Options{ID: "pub"}), message("t/1", "m", 1))
	m := receive(t, device)
	close(release)
	if err := <-acked; err != nil {
		t.Error(err)
	}
	if err := device.Ack(m); err != nil {
		t.Fatal(err)
	}
	p.wants("OnProviderLoaded", `OnMessagePublish #1 slow "of its own" qos 1 from device`, `OnMessageAcked device #2 t/1 "m" qos 1 from pub`)
}
