package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// Where brokers publish how many deliveries they have dropped since they started.
const (
	emqxDrops      = "$SYS/brokers/+/metrics/delivery/dropped/queue_full" // EMQX 4 and 5, of each node
	mosquittoDrops = "$SYS/broker/publish/messages/dropped"               // Mosquitto
	mochiDrops     = "$SYS/broker/messages/dropped"                       // mochi-mqtt
)

// EMQXDropFilters and the like are what [SourceConfig.Drops] may be. Those for any broker are all of them: what a broker does not
// publish does not come.
var (
	EMQXDropFilters      = []string{emqxDrops}
	MosquittoDropFilters = []string{mosquittoDrops}
	AnyDropFilters       = []string{emqxDrops, mosquittoDrops, mochiDrops}
)

const (
	mostDropTopics = 1000            // broker nodes, which are told of by topics of their own
	dropStrikes    = 5               // a broker that hangs up so often after the subscribe does not want it
	dropStrikeTime = 2 * time.Second // what counts as after the subscribe
	tellsDrops     = "the broker counts deliveries that it dropped, since they came faster than a client took them: raise its limits of queue and window " +
		"for our user (EMQX: mqtt.max_mqueue_len, max_inflight; Mosquitto: max_queued_messages, max_inflight_messages), or use more connections"
)

// drops watches a broker's counters of dropped deliveries, over a connection of its own: a broker that does not let us see them may
// cut it. The counters are about all clients: a rise says that ingest may have missed messages, not that it has.
type drops struct {
	cfg     SourceConfig
	filters []string

	mu   sync.Mutex
	last map[string]uint64 // by topic
	said pipeline.Rarely
	bad  pipeline.Rarely
}

func newDrops(cfg SourceConfig) *drops {
	return &drops{cfg: cfg, filters: cfg.Drops, last: map[string]uint64{}}
}

// run watches until ctx ends, or until the broker has refused.
func (d *drops) run(ctx context.Context) {
	dialing, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	asked, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	client := fmt.Sprintf("%singest-%d-drops", d.cfg.Prefix, d.cfg.Ordinal)
	l, err := d.cfg.Server.dial(dialing, slog.New(slog.DiscardHandler), autopaho.ClientConfig{
		CleanStartOnInitialConnection: true,
		OnConnectError: func(err error) {
			if refused, ok := errors.AsType[*autopaho.ConnackError](err); ok && refused.ReasonCode >= 0x80 {
				giveUp(fmt.Errorf("connect as %s: %w", client, err))
			}
		},
		ClientConfig: paho.ClientConfig{
			ClientID: client,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
				d.tell(r.Packet.Topic, r.Packet.Payload)
				return true, nil
			}},
		},
	}, func(Loss) {}, nil) // what is missed meanwhile is told by the counter all the same
	if err != nil {
		return // unreachable: the source's own connections have the same server
	}
	if err := d.watch(asked, l); err != nil && ctx.Err() == nil {
		d.cfg.Log.WarnContext(ctx, "the broker's counters of dropped deliveries are not seen", "err", err, "filters", d.filters,
			"hint", "let the user subscribe to these filters, or set broker_drops: false")
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = l.close(bye) // nothing is kept for this connection
}

// watch subscribes after each connect. It returns why the broker does not let us see the counters, or with the end of ctx.
func (d *drops) watch(ctx context.Context, l *link) error {
	for strikes := 0; strikes < dropStrikes; strikes++ {
		_, cut, err := l.wait(ctx)
		if err != nil {
			return context.Cause(ctx)
		}
		err = d.subscribe(ctx, l, cut)
		if refused, ok := errors.AsType[*dropsRefusedError](err); ok {
			return refused
		}
		since, again := time.Now(), (<-chan time.Time)(nil)
		if err != nil {
			again = time.After(dropStrikeTime)
		}
		select {
		case <-cut:
		case <-again:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err == nil && time.Since(since) > dropStrikeTime {
			strikes = 0
		}
	}
	return fmt.Errorf("the connection was cut %d times after the subscribe", dropStrikes)
}

// dropsRefusedError is the answer of a broker that grants none of the filters.
type dropsRefusedError struct{ codes []byte }

func (e *dropsRefusedError) Error() string {
	return fmt.Sprintf("subscribe: refused with reasons %#x", e.codes)
}

// subscribe returns nil when a filter was granted.
func (d *drops) subscribe(ctx context.Context, l *link, cut <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, subscribeDeadline)
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() { // ends with ctx: a connection that is cut answers nothing any more
		defer close(done)
		select {
		case <-cut:
			cancel()
		case <-ctx.Done():
		}
	}()
	s := &paho.Subscribe{}
	for _, f := range d.filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f}) // with the retained ones: where counting begins
	}
	ack, err := l.cm.Subscribe(ctx, s)
	if ack == nil {
		return err
	}
	for _, code := range ack.Reasons {
		if code < 0x80 {
			return nil
		}
	}
	return &dropsRefusedError{ack.Reasons}
}

// tell notes what a counter says now. The first value is where counting begins; one that is lower comes from a broker that was
// started since, and counts whole.
func (d *drops) tell(topic string, payload []byte) {
	n, err := d.parse(topic, payload)
	if err != nil {
		d.cfg.Count(CountRefusedLine)
		d.bad.Say(func(before int) {
			d.cfg.Log.Warn("counter of dropped deliveries refused", "err", err, "unsaid", before)
		})
		return
	}
	d.mu.Lock()
	last, known := d.last[topic]
	if known || len(d.last) < mostDropTopics {
		d.last[topic] = n
	}
	d.mu.Unlock()
	switch {
	case !known, n == last:
		return
	case n > last:
		n -= last
	}
	if n == 0 {
		return
	}
	d.cfg.Dropped(n)
	d.said.Say(func(before int) {
		d.cfg.Log.Warn("broker drops deliveries, messages may be missing", "counter", topic, "dropped", n, "hint", tellsDrops, "unsaid", before)
	})
}

// parse reads a counter: decimal digits and nothing else, on a topic that was asked for.
func (d *drops) parse(topic string, payload []byte) (uint64, error) {
	const most = 20 // digits of 64 bits
	asked := false
	t, err := event.ParseTopic(topic)
	for _, f := range d.filters {
		filter, bad := event.ParseFilter(f)
		asked = asked || err == nil && bad == nil && filter.Match(t)
	}
	text := string(payload[:min(len(payload), most+1)])
	if !asked || len(text) > most || strings.Trim(text, "0123456789") != "" || text == "" {
		return 0, fmt.Errorf("counter %.100q says %.40q: no number", topic, payload)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("counter %.100q: %w", topic, err)
	}
	return n, nil
}
