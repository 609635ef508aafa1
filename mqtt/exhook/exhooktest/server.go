package exhooktest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

// connectTimeout is long: a connection that is given up before it is served has been told of already, and the next would make two loads.
const connectTimeout = 20 * time.Second

// server is an ExHook server as the broker sees it.
type server struct {
	broker *Broker
	conn   *grpc.ClientConn
	joined chan struct{} // there is a new connection

	mu    sync.Mutex
	loads int
	hooks map[string][]event.Filter // by name, with the filters of a message hook; none = all topics
}

// calls are the hooks that this broker has, with the calls that tell of them.
var calls = map[string]string{
	"client.connected":     "OnClientConnected",
	"client.disconnected":  "OnClientDisconnected",
	"session.subscribed":   "OnSessionSubscribed",
	"session.unsubscribed": "OnSessionUnsubscribed",
	"message.publish":      "OnMessagePublish",
	"message.acked":        "OnMessageAcked",
	"message.dropped":      "OnMessageDropped",
}

func (b *Broker) dial(addr string) (*server, error) {
	s := &server{broker: b, joined: make(chan struct{}, 1)}
	pause := b.options.AutoReconnect
	var err error
	s.conn, err = grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.WaitForReady(true)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: pause, Multiplier: 1, MaxDelay: pause}, MinConnectTimeout: connectTimeout}),
		grpc.WithStatsHandler(joins{s.joined}),
	)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", addr, err)
	}
	return s, nil
}

// joins tells of new connections.
type joins struct{ joined chan<- struct{} }

func (joins) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (joins) HandleRPC(context.Context, stats.RPCStats)                         {}
func (joins) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (j joins) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ok := s.(*stats.ConnBegin); ok {
		select {
		case j.joined <- struct{}{}:
		default:
		}
	}
}

// keepLoaded connects again and again and loads the server on each connection. While there is none its hooks stay registered:
// what calls them waits for the time-out, as EMQX 4.4 was seen to do.
func (s *server) keepLoaded(ctx context.Context) {
	again := time.NewTicker(s.broker.options.AutoReconnect)
	defer again.Stop()
	refused := false // the server was reached, but has not said what it wants
	for {
		s.conn.Connect() // does nothing unless it is idle
		select {
		case <-ctx.Done():
			return
		case <-s.joined:
			refused = !s.load(ctx)
		case <-again.C:
			if refused {
				refused = !s.load(ctx)
			}
		}
	}
}

// load asks which hooks the server wants. One that this broker does not have is no fault of the server, and a test must know.
func (s *server) load(ctx context.Context) bool {
	var answer exhookpb.LoadedResponse
	if err := s.call(ctx, "OnProviderLoaded", s.broker.loadedRequest(), &answer); err != nil {
		return false
	}
	hooks := map[string][]event.Filter{}
	for _, h := range answer.GetHooks() {
		if calls[h.GetName()] == "" {
			s.broker.tb.Errorf("a server registers %q: this broker has no such hook", h.GetName())
			return false
		}
		hooks[h.GetName()] = nil
		if !strings.HasPrefix(h.GetName(), "message.") {
			continue // its topics mean nothing
		}
		for _, text := range h.GetTopics() {
			f, err := event.ParseFilter(text)
			if err != nil {
				s.broker.tb.Errorf("a server registers %s for %q: %v", h.GetName(), text, err)
				return false
			}
			hooks[h.GetName()] = append(hooks[h.GetName()], f)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = hooks
	s.loads++
	return true
}

// wants reports whether the server has registered a hook; for a message hook also for the message's topic.
func (s *server) wants(hook, topic string) bool {
	s.mu.Lock()
	filters, registered := s.hooks[hook]
	s.mu.Unlock()
	if !registered || len(filters) == 0 {
		return registered
	}
	t, err := event.ParseTopic(topic)
	if err != nil {
		return false
	}
	for _, f := range filters {
		if f.Match(t) {
			return true
		}
	}
	return false
}

func (s *server) call(ctx context.Context, name string, request proto.Message, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, s.broker.options.RequestTimeout)
	defer cancel()
	return s.conn.Invoke(ctx, s.broker.version.path(name), request, answer)
}

// serversOf are those that are told of a client: all, or of servers behind one address the one that its connection leads to.
func (b *Broker) serversOf(client string) []*server {
	if !b.options.Shared {
		return b.servers
	}
	h := sha256.Sum256([]byte(client)) // the replayer chooses its connections by a hash too, and this must be quite another
	first := int(h[0]) % len(b.servers)
	for i := range b.servers {
		if s := b.servers[(first+i)%len(b.servers)]; s.conn.GetState() == connectivity.Ready {
			return []*server{s}
		}
	}
	return b.servers[first : first+1]
}

// tell calls a hook of every server that wants it, one after another, and waits for the answers, which mean nothing.
func (b *Broker) tell(client, hook, topic string, request proto.Message) {
	if strings.HasPrefix(topic, "$SYS/") {
		return
	}
	for _, s := range b.serversOf(client) {
		if !s.wants(hook, topic) {
			continue
		}
		if err := s.call(b.ctx, calls[hook], request, &exhookpb.EmptySuccess{}); err != nil {
			b.failed.Add(1)
		}
	}
}

// ask calls message.publish and returns the message that the answers make of it: one that is told to go on with another message
// asks the next server about that, one that is told to stop asks nobody else.
func (b *Broker) ask(request *exhookpb.MessagePublishRequest) (m message, allowed bool) {
	m, allowed = messageOf(request.GetMessage()), true
	if strings.HasPrefix(m.topic, "$SYS/") {
		return m, allowed
	}
	for _, s := range b.serversOf(string(request.GetMessage().GetFrom())) {
		if !s.wants("message.publish", m.topic) {
			continue
		}
		var a answer
		if err := s.call(b.ctx, calls["message.publish"], request, &a); err != nil {
			b.failed.Add(1)
			continue
		}
		switch {
		case a.kind == exhookpb.ValuedResponse_IGNORE:
			continue
		case a.message == nil:
			b.puzzled.Add(1)
			continue
		}
		m = *a.message
		if m.allowPublish != "" {
			allowed = m.allowPublish != "false"
		}
		m.assign(request.GetMessage())
		if a.kind == exhookpb.ValuedResponse_STOP_AND_RETURN {
			break
		}
	}
	return m, allowed
}
