package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/device"
	"github.com/restante/restante/pipeline"
)

// trip is a message that is published while nobody hears it, and the client that asks for it later.
type trip struct {
	client, publisher string
	topic             event.Topic
	filters           []string // what the client subscribes to, the last one last: it brings the replay
	fetch             []string // topics that the client asks on, where sources do not tell of subscribes
	payload           string
}

// tripResult is what is printed of it.
type tripResult struct {
	Topic   string  `json:"topic"`
	Client  string  `json:"client"`
	MsgID   string  `json:"msgid"`
	Seconds float64 `json:"seconds"` // from the subscribe to the replay
}

func newRoundtrip(signals <-chan os.Signal) *cobra.Command {
	var config, topic, user, passwordFile string
	var timeout time.Duration
	var o output
	cmd := &cobra.Command{
		Use:   "roundtrip",
		Short: "Publish a message that nobody hears, subscribe, and wait for its replay",
		Long: `Publish a message at QoS 1 while nobody is subscribed, then connect a client, subscribe, and wait until the message comes as a replay.
The whole way is walked: broker, ingest, Kafka, store or log, replayer, broker. The topic is made from the first rule that stores messages
and hands them over at a subscribe; the client and the publisher log in as the replayer does unless --user names another. Exit code 1 when the replay
does not come in time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c, err := loadConfig(config, true)
			if err != nil {
				return err
			}
			t, err := planTrip(c, topic)
			if err != nil {
				return err
			}
			d, err := newDialer(c, user, passwordFile)
			if err != nil {
				return err
			}
			ctx, cancel := interruptible(cmd.Context(), signals)
			defer cancel()
			ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the time of %s is over", timeout))
			defer cancel()
			got, err := t.walk(ctx, d)
			if err != nil {
				return fmt.Errorf("round trip on %s: %w", t.topic, err)
			}
			if o == "json" {
				return printJSON(cmd.OutOrStdout(), got)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "ok      %s came back %.2f s after the subscribe, offline-msgid %s\n", got.Topic, got.Seconds, got.MsgID)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&config, "config", "c", "restante.yaml", "configuration `file`")
	f.StringVar(&topic, "topic", "", "publish to this `topic`; {clientid} stands for the client (default: made from the rules)")
	f.StringVar(&user, "user", "", "log in as this `name` (default: that of delivery.mqtt)")
	f.StringVar(&passwordFile, "password-file", "", "`file` with the password of --user")
	f.DurationVar(&timeout, "timeout", 2*time.Minute, "how long all of it may take")
	o.add(cmd)
	return cmd
}

// planTrip finds a topic that a rule stores and hands over.
func planTrip(c app.Config, topic string) (trip, error) {
	name := strings.ToLower(rand.Text()[:10])
	t := trip{client: "roundtrip-" + name, publisher: "roundtrip-" + name + "-from", payload: "round trip " + name}
	if topic == "" {
		var ok bool
		if topic, ok = tripTopic(c.PipelineRules()); !ok {
			return t, errors.New("no rule both stores messages and hands them over at a subscribe (on_message_publish, on_message_fetch_for_queue): name a --topic")
		}
	}
	var err error
	if t.topic, err = event.ParseTopic(strings.ReplaceAll(topic, "{clientid}", t.client)); err != nil {
		return t, fmt.Errorf("--topic: %w", err)
	}
	if c.Delivery.To == "prefix" {
		template, err := mqtt.ParseTemplate(c.Delivery.Prefix)
		if err != nil {
			return t, fmt.Errorf("delivery.prefix: %w", err)
		}
		id, err := event.ParseClientID(t.client)
		if err != nil {
			return t, err
		}
		to, err := template.For(id, t.topic.String())
		if err != nil {
			return t, err
		}
		t.filters = append(t.filters, to.String())
	}
	t.filters = append(t.filters, t.topic.String())
	for _, s := range c.Sources {
		if s.MQTT != nil && s.MQTT.Decode == "plain" && s.MQTT.FetchTopic != "" {
			t.fetch = append(t.fetch, strings.ReplaceAll(s.MQTT.FetchTopic, "{clientid}", t.client))
		}
	}
	return t, nil
}

// tripTopic is a topic that the first fitting rules cover, with {clientid} where they have an addressee.
func tripTopic(rules []pipeline.Rule) (string, bool) {
	for _, store := range rules {
		if store.Action != pipeline.OnMessagePublish {
			continue
		}
		for _, fetch := range rules {
			if fetch.Action != pipeline.OnMessageFetchForQueue || fetch.Hook != pipeline.SessionSubscribed || fetch.Sink != store.Sink {
				continue
			}
			pattern := fetch.Addressee
			if pattern == "" {
				pattern = store.Topic.String()
			}
			levels := strings.Split(pattern, "/")
			for i, l := range levels {
				if l == "+" || l == "#" {
					levels[i] = "restante-roundtrip"
				}
			}
			topic := strings.Join(levels, "/")
			if at, err := event.ParseTopic(strings.ReplaceAll(topic, "{clientid}", "c")); err == nil && store.Topic.Match(at) && fetch.Topic.Match(at) {
				return topic, true
			}
		}
	}
	return "", false
}

// dialer connects clients to the broker that the replayer publishes to.
type dialer struct {
	urls           []*url.URL
	tls            *tls.Config
	user, password string
}

func newDialer(c app.Config, user, passwordFile string) (dialer, error) {
	m := c.Delivery.MQTT
	d := dialer{user: m.User, password: m.Password.Reveal()}
	urls := m.URL
	if len(urls) == 0 {
		for _, s := range c.Sources {
			if s.Embedded == nil || s.Embedded.TLS.Enabled {
				continue
			}
			host, port, err := net.SplitHostPort(s.Embedded.Listen)
			if err != nil {
				return d, fmt.Errorf("listen of the embedded broker: %w", err)
			}
			if host == "" {
				host = "127.0.0.1"
			}
			urls = append(urls, "mqtt://"+net.JoinHostPort(host, port))
		}
	}
	if len(urls) == 0 {
		return d, errors.New("delivery.mqtt.url is missing: the round trip needs the broker's address")
	}
	var err error
	if d.urls, err = (mqtt.Server{URLs: urls}).Parse(); err != nil {
		return d, fmt.Errorf("delivery.mqtt: %w", err)
	}
	if d.tls, err = m.TLS.Config(true); err != nil {
		return d, fmt.Errorf("delivery.mqtt.tls: %w", err)
	}
	if user != "" {
		d.user, d.password = user, ""
	}
	if passwordFile != "" {
		data, err := os.ReadFile(passwordFile) //nolint:gosec // the operator names the file
		if err != nil {
			return d, fmt.Errorf("--password-file: %w", err)
		}
		d.password = strings.TrimRight(string(data), "\r\n")
	}
	return d, nil
}

// dial connects to the first address that takes the client.
func (d dialer) dial(ctx context.Context, id string) (*device.Device, error) {
	var errs []error
	for _, u := range d.urls {
		if u.Scheme == "ws" || u.Scheme == "wss" {
			errs = append(errs, fmt.Errorf("%s: the round trip does not speak WebSocket", u.Scheme))
			continue
		}
		o := device.Options{Addr: u.Host, ClientID: id, User: d.user, Password: d.password}
		if mqtt.Secure(u) {
			o.TLS = d.tls
		}
		client, err := device.Connect(ctx, o)
		if err == nil {
			return client, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// walk publishes, subscribes and waits for the replay until ctx ends.
func (t trip) walk(ctx context.Context, d dialer) (tripResult, error) {
	got := tripResult{Topic: t.topic.String(), Client: t.client}
	from, err := d.dial(ctx, t.publisher)
	if err != nil {
		return got, err
	}
	err = from.Publish(ctx, t.topic.String(), 1, t.payload)
	from.Close()
	if err != nil {
		return got, err
	}
	client, err := d.dial(ctx, t.client)
	if err != nil {
		return got, err
	}
	defer client.Close()
	began := time.Now()
	for _, filter := range t.filters {
		if err := client.Subscribe(ctx, filter, 1); err != nil {
			return got, err
		}
	}
	for _, topic := range t.fetch {
		if err := client.Publish(ctx, topic, 1, t.topic.String()); err != nil {
			return got, err
		}
	}
	for {
		m, err := client.Next(ctx, time.Hour) // ctx ends before
		switch {
		case err != nil:
			return got, fmt.Errorf("%w, and the message was not replayed: look at /readyz and the logs of ingest, the writers and the replayer", err)
		case m.Payload != t.payload:
			continue // somebody else's
		case m.User[mqtt.PropMessageID] == "":
			return got, fmt.Errorf("the message came without %s: the broker itself kept it, it is no replay", mqtt.PropMessageID)
		}
		got.MsgID, got.Seconds = m.User[mqtt.PropMessageID], time.Since(began).Seconds()
		return got, nil
	}
}
