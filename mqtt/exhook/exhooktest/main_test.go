package exhooktest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
	"github.com/restante/restante/mqtt/exhook/exhooktest"
	"github.com/restante/restante/mqtt/mqtttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// raw is a codec that sends and receives bytes as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("no bytes")
	}
	return b, nil
}

func (raw) Unmarshal(data []byte, v any) error {
	p, ok := v.(*[]byte)
	if !ok {
		return errors.New("no bytes")
	}
	*p = bytes.Clone(data)
	return nil
}

// provider is an ExHook server that writes down what it is told.
type provider struct {
	t      *testing.T
	addr   string
	hooks  []string                             // that it registers: a name, then filters
	answer func(publish []byte) ([]byte, error) // to a publish; nil = IGNORE

	mu     sync.Mutex
	server *grpc.Server
	told   []call
	news   chan struct{} // closed and renewed when told grows
}

// call is a call that came.
type call struct {
	path string
	body []byte
}

// provide starts a server that registers hooks. With none it registers all for every topic.
func provide(t *testing.T, hooks ...string) *provider {
	t.Helper()
	if hooks == nil {
		hooks = []string{
			"client.connected", "client.disconnected", "session.subscribed", "session.unsubscribed", "message.publish", "message.acked",
			"message.dropped",
		}
	}
	p := &provider{t: t, addr: ports.Addr(t), hooks: hooks, news: make(chan struct{})}
	p.begin()
	t.Cleanup(p.end)
	return p
}

func (p *provider) begin() {
	p.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(p.t.Context(), "tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(p.serve), grpc.WaitForHandlers(true))
	p.mu.Lock()
	p.server = s
	p.mu.Unlock()
	go s.Serve(l) //nolint:errcheck // ends with end
}

func (p *provider) end() {
	p.mu.Lock()
	s := p.server
	p.mu.Unlock()
	s.Stop()
}

func (p *provider) serve(_ any, stream grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(stream)
	var body []byte
	if err := stream.RecvMsg(&body); err != nil {
		return err
	}
	p.mu.Lock()
	p.told = append(p.told, call{path, body})
	close(p.news)
	p.news = make(chan struct{})
	p.mu.Unlock()
	switch {
	case strings.HasSuffix(path, "/OnProviderLoaded"):
		out := &exhookpb.LoadedResponse{}
		for _, h := range p.hooks {
			f := strings.Fields(h)
			out.Hooks = append(out.Hooks, &exhookpb.HookSpec{Name: f[0], Topics: f[1:]})
		}
		b, err := proto.Marshal(out)
		if err != nil {
			return err
		}
		return stream.SendMsg(b)
	case strings.HasSuffix(path, "/OnMessagePublish"):
		b := ignore
		if p.answer != nil {
			var err error
			if b, err = p.answer(body); err != nil {
				return err
			}
		}
		return stream.SendMsg(b)
	}
	return stream.SendMsg([]byte{})
}

var ignore = []byte{8, 1}

// await waits until n calls have come and returns them. More than n fail the test.
func (p *provider) await(n int) []call {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	for {
		p.mu.Lock()
		told, news := p.told, p.news
		p.mu.Unlock()
		switch {
		case len(told) > n:
			p.t.Fatalf("%d calls came, want %d:\n%s", len(told), n, strings.Join(lines(p.t, told), "\n"))
		case len(told) == n:
			return told
		}
		select {
		case <-news:
		case <-ctx.Done():
			p.t.Fatalf("%d calls came, want %d:\n%s", len(told), n, strings.Join(lines(p.t, told), "\n"))
		}
	}
}

// wants compares all calls that have come, and come within a moment, with lines, see lines.
func (p *provider) wants(want ...string) {
	p.t.Helper()
	p.await(len(want))
	time.Sleep(50 * time.Millisecond)
	if diff := cmp.Diff(want, lines(p.t, p.await(len(want)))); diff != "" {
		p.t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// lines describe calls. Message ids are numbered in the order in which they come.
func lines(t *testing.T, calls []call) []string {
	t.Helper()
	var out []string
	ids := map[string]int{}
	message := func(m *exhookpb.Message) string {
		id := string(m.GetId())
		if len(id) != 32 || strings.ToUpper(id) != id {
			t.Errorf("message id %q", id)
		}
		if ids[id] == 0 {
			ids[id] = len(ids) + 1
		}
		if apart := time.Since(time.UnixMilli(int64(m.GetTimestamp()))); apart < 0 || apart > time.Minute {
			t.Errorf("message %s is of %v ago", id, apart)
		}
		return fmt.Sprintf("#%d %s %q qos %d from %s", ids[id], m.GetTopic(), m.GetPayload(), m.GetQos(), m.GetFrom())
	}
	read := func(c call, into proto.Message) {
		if err := proto.Unmarshal(c.body, into); err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
	}
	for _, c := range calls {
		name := c.path[strings.LastIndexByte(c.path, '/')+1:]
		switch name {
		case "OnClientConnected":
			var r exhookpb.ClientConnectedRequest
			read(c, &r)
			name += fmt.Sprintf(" %s %s", r.Clientinfo.Clientid, r.Clientinfo.Username)
		case "OnClientDisconnected":
			var r exhookpb.ClientDisconnectedRequest
			read(c, &r)
			name += fmt.Sprintf(" %s %s", r.Clientinfo.Clientid, r.Reason)
		case "OnSessionSubscribed":
			var r exhookpb.SessionSubscribedRequest
			read(c, &r)
			o := r.Subopts
			name += fmt.Sprintf(" %s %s %q qos %d rh %d rap %d nl %d", r.Clientinfo.Clientid, r.Topic, o.Share, o.Qos, o.Rh, o.Rap, o.Nl)
		case "OnSessionUnsubscribed":
			var r exhookpb.SessionUnsubscribedRequest
			read(c, &r)
			name += fmt.Sprintf(" %s %s", r.Clientinfo.Clientid, r.Topic)
		case "OnMessagePublish":
			var r exhookpb.MessagePublishRequest
			read(c, &r)
			name += " " + message(r.Message)
			for _, p := range append(r.Props, r.UserProps...) {
				name += fmt.Sprintf(" %s=%s", p.Name, p.Value)
			}
		case "OnMessageAcked":
			var r exhookpb.MessageAckedRequest
			read(c, &r)
			name += fmt.Sprintf(" %s %s", r.Clientinfo.Clientid, message(r.Message))
		case "OnMessageDropped":
			var r exhookpb.MessageDroppedRequest
			read(c, &r)
			name += fmt.Sprintf(" %s %s", message(r.Message), r.Reason)
		}
		out = append(out, name)
	}
	return out
}

// start starts a broker that has loaded the servers.
func start(t *testing.T, o exhooktest.Options, servers ...*provider) *exhooktest.Broker {
	t.Helper()
	for _, p := range servers {
		o.Servers = append(o.Servers, p.addr)
	}
	if o.AutoReconnect == 0 {
		o.AutoReconnect = 50 * time.Millisecond
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = patience // a call that fails on a slow machine comes again
	}
	b := exhooktest.Start(t, o)
	b.AwaitLoaded(1)
	return b
}

func dial(t *testing.T, b *exhooktest.Broker, o mqtttest.Options) *mqtttest.Client {
	t.Helper()
	c, err := mqtttest.Dial(within(t), b.Addr(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Cut)
	return c
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func publish(t *testing.T, c *mqtttest.Client, m mqtttest.Message) {
	t.Helper()
	if err := c.Publish(within(t), m); err != nil {
		t.Fatal(err)
	}
}

func subscribe(t *testing.T, c *mqtttest.Client, qos byte, filters ...string) {
	t.Helper()
	if codes, err := c.Subscribe(within(t), qos, filters...); err != nil || codes[0] > 2 {
		t.Fatalf("subscribe: %v %v", codes, err)
	}
}

func receive(t *testing.T, c *mqtttest.Client) mqtttest.Message {
	t.Helper()
	m, err := c.Receive(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func message(topic, payload string, qos event.QoS) mqtttest.Message {
	return mqtttest.Message{Topic: topic, Payload: []byte(payload), QoS: qos}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// valued is a ValuedResponse, written by EMQX's field numbers.
func valued(kind, qos uint64, topic, payload string, headers ...string) []byte {
	var m []byte
	m = protowire.AppendVarint(protowire.AppendTag(m, 3, protowire.VarintType), qos)
	m = protowire.AppendString(protowire.AppendTag(m, 5, protowire.BytesType), topic)
	m = protowire.AppendString(protowire.AppendTag(m, 6, protowire.BytesType), payload)
	for i := 0; i < len(headers); i += 2 {
		h := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), headers[i])
		h = protowire.AppendString(protowire.AppendTag(h, 2, protowire.BytesType), headers[i+1])
		m = protowire.AppendBytes(protowire.AppendTag(m, 8, protowire.BytesType), h)
	}
	out := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), kind)
	return protowire.AppendBytes(protowire.AppendTag(out, 4, protowire.BytesType), m)
}
