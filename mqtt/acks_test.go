package mqtt_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/mqtttest"
	"github.com/restante/restante/mqtt/sourcetest"
)

// late holds paho's connect up right before it forgets what it may be asked to acknowledge.
type late struct{ arrived <-chan *paho.Publish }

func (l late) Println(v ...any) {
	if fmt.Sprint(v...) != "starting acking routine" {
		return
	}
	for end := time.Now().Add(200 * time.Millisecond); len(l.arrived) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (l late) Printf(string, ...any) {}

func TestWhatAResumedSessionSendsAtOnceIsAcknowledged(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.1:0")
	const n = 3
	before := b.dial(t, "dev", func(o *mqtttest.Options) { o.SessionExpiry = time.Hour })
	subscribe(t, before, 1, "t")
	before.Disconnect()
	publishAll(t, b.dial(t, "pub"), 1, numbers(0, n))

	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan *paho.Publish, n)
	session := mqtt.NewAcks()
	c := paho.NewClient(paho.ClientConfig{
		Conn: conn, Session: session, EnableManualAcknowledgment: true, SendAcksInterval: time.Millisecond,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			arrived <- r.Packet
			return true, nil
		}},
	})
	c.SetDebugLogger(late{arrived})
	ack, err := c.Connect(contextOf(t), &paho.Connect{ClientID: "dev", KeepAlive: 30})
	if err != nil || !ack.SessionPresent {
		t.Fatalf("connect: %+v, %v", ack, err)
	}
	t.Cleanup(func() {
		_ = c.Disconnect(&paho.Disconnect{})
		<-c.Done()
	})
	session.Connected()
	for range n {
		select {
		case m := <-arrived:
			if err := c.Ack(m); err != nil {
				t.Errorf("ack %s: %v", m.Payload, err)
			}
		case <-time.After(patience):
			t.Fatal("no message in time")
		}
	}
	sourcetest.Eventually(t, "all acks", func() bool { return acksOf(b, "dev") == n })
}
