package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/pipeline"
)

// TopicSpec is a Kafka topic with all that is derived filled in.
type TopicSpec struct {
	Name                               string
	Partitions, Replication, MinInsync int
	Retention                          time.Duration
}

// Topic is how the topic of the kind is named and made.
func (k Kafka) Topic(kind event.Kind) TopicSpec {
	t := map[event.Kind]KafkaTopic{event.Messages: k.Messages, event.Sessions: k.Sessions, event.Dead: k.Dead}[kind]
	for _, r := range []int{k.Messages.Replication, 3} {
		if t.Replication == 0 {
			t.Replication = r
		}
	}
	if t.MinInsync == 0 {
		t.MinInsync = max(1, t.Replication-1)
	}
	return TopicSpec{k.Names.Topics + "." + string(kind), t.Partitions, t.Replication, t.MinInsync, t.Retention}
}

// TopicNames are the full names of the topics.
func (k Kafka) TopicNames() pipeline.Topics {
	return pipeline.Topics{Messages: k.Topic(event.Messages).Name, Sessions: k.Topic(event.Sessions).Name, Dead: k.Topic(event.Dead).Name}
}

// WriterGroup is the consumer group of a sink's writers.
func (k Kafka) WriterGroup(sink string) string { return k.Names.Groups + ".writer." + sink }

// ReplayerGroup is the consumer group of the replayers.
func (k Kafka) ReplayerGroup() string { return k.Names.Groups + ".replayer" }

// Conditions are what a process waits for before it is ready, all known before it begins: one that was not awaited from the start
// could not keep a probe from taking the others for the whole.
func (c Config) Conditions(process string, sinkNames []string) []string {
	names := []string{conditionKafka}
	if process == ProcessIngest || process == ProcessUp {
		names = append(names, conditionSources)
	}
	for _, s := range sinkNames {
		if process != ProcessIngest {
			names = append(names, conditionSink(s))
		}
		if process == ProcessWriter || process == ProcessUp {
			names = append(names, conditionGroup(c.Kafka.WriterGroup(s)))
		}
	}
	if process == ProcessReplayer || process == ProcessUp {
		names = append(names, conditionGroup(c.Kafka.ReplayerGroup()))
		if c.Delivery.To != "direct" {
			names = append(names, conditionDelivery)
		}
	}
	return names
}

// What an MQTT source decodes, beside plain publishes, and where it subscribes to by default.
const (
	decodePlain = "plain"
	decodeEMQX  = "emqx"
	decodeLog   = "mosquitto"
	emqxEvents  = "restante/events" // where a rule republishes to
	formatRule  = "emqx-rule"       // the same JSON, by a webhook
	formatEMQX  = "emqx-webhook"
)

// connections is how many the source makes.
func (s MQTTSource) connections() int {
	switch {
	case s.Connections > 0:
		return s.Connections
	case s.Decode == decodeEMQX, s.Decode == decodeLog:
		return 1
	}
	return 4
}

// envelopes reports whether replays are published in envelopes: where nothing but ExHook tells of acks, the id of a replay is one of the
// broker's own, and our server must see it being given.
func (c Config) envelopes() bool {
	exhook := c.has(func(s Source) bool { return s.Exhook != nil })
	other := c.has(func(s Source) bool { return s.Exhook == nil && s.sees(seesReplayAck) })
	return c.Delivery.Evidence == "broker" && c.Delivery.To != "direct" && exhook && !other
}

// answers reports whether the source hears what clients publish to the response topic.
func (s Source) answers() bool {
	return s.MQTT != nil && s.MQTT.Decode != decodeEMQX || s.Webhook != nil && s.Webhook.Format != formatRule
}

// room is how large a body is that holds one message with that payload.
func (h WebhookSource) room(payload Size) Size { return payload/3*4 + 64*KiB }

// SourceFilters are what the named MQTT source subscribes to: its filters, or without any the topics of all rules on
// message.publish, and for decode: emqx the topic that rules republish to. For decode: mosquitto its log is among them.
func (c Config) SourceFilters(name string) []string {
	m := c.Sources[name].MQTT
	if m == nil {
		return nil
	}
	out := slices.Clone([]string(m.Filters))
	switch {
	case len(out) > 0:
	case m.Decode == decodeEMQX:
		return []string{emqxEvents}
	default:
		for _, r := range c.PipelineRules() {
			if r.Hook == pipeline.MessagePublish {
				out = append(out, r.Topic.String())
			}
		}
		slices.Sort(out)
		out = slices.Compact(out)
	}
	if m.Decode == decodeLog && !slices.ContainsFunc(out, func(f string) bool { return strings.HasPrefix(f, "$SYS/") }) {
		out = append(out, mqtt.MosquittoLogFilters...)
	}
	return out
}

// WithSecrets returns the configuration with the contents of all password files in place of their names. The error has every
// file that cannot be used, that of delivery.secret_file included.
func (c Config) WithSecrets() (Config, error) {
	var faults Faults
	read := func(path string, value *Secret, file *string) {
		if *file == "" {
			return
		}
		data, err := os.ReadFile(*file)
		text := strings.TrimRight(string(data), "\r\n")
		switch {
		case err != nil:
			faults.add(path, "%s", err)
		case text == "":
			faults.add(path, "file %s is empty", *file)
		}
		*value, *file = Secret(text), ""
	}
	read("kafka.sasl.password_file", &c.Kafka.SASL.Password, &c.Kafka.SASL.PasswordFile)
	c.Sources = maps.Clone(c.Sources)
	for _, name := range sortedKeys(c.Sources) {
		s := c.Sources[name]
		switch {
		case s.MQTT != nil:
			m := *s.MQTT
			read("sources."+name+".password_file", &m.Password, &m.PasswordFile)
			s.MQTT = &m
		case s.Webhook != nil:
			h := *s.Webhook
			read("sources."+name+".token_file", &h.Token, &h.TokenFile)
			read("sources."+name+".hmac_key_file", &h.HMACKey, &h.HMACFile)
			s.Webhook = &h
		}
		c.Sources[name] = s
	}
	c.Sinks = maps.Clone(c.Sinks)
	for _, name := range sortedKeys(c.Sinks) {
		s := c.Sinks[name]
		switch {
		case s.Cassandra != nil:
			k := *s.Cassandra
			read("sinks."+name+".password_file", &k.Password, &k.PasswordFile)
			s.Cassandra = &k
		case s.DynamoDB != nil:
			d := *s.DynamoDB
			read("sinks."+name+".secret_access_key_file", &d.SecretAccessKey, &d.SecretAccessKeyFile)
			s.DynamoDB = &d
		}
		c.Sinks[name] = s
	}
	if file := c.Delivery.SecretFile; file != "" {
		if _, err := mqtt.LoadSecret(file); err != nil { // it may hold two keys, so it stays a file
			faults.add("delivery.secret_file", "%s", err)
		}
	}
	read("delivery.mqtt.password_file", &c.Delivery.MQTT.Password, &c.Delivery.MQTT.PasswordFile)
	read("delivery.api.secret_file", &c.Delivery.API.Secret, &c.Delivery.API.SecretFile)
	return c, faults.join()
}

// Config makes the client's TLS configuration; nil without an error when TLS is off. secure says that a URL asks for TLS.
func (t TLS) Config(secure bool) (*tls.Config, error) {
	if !t.Enabled && !secure {
		return nil, nil //nolint:nilnil // no TLS is no configuration
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	var err error
	if out.RootCAs, err = readPool(t.CAFile); err != nil {
		return nil, err
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

// Config makes the server's TLS configuration; nil without an error when TLS is off.
func (t ListenTLS) Config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil //nolint:nilnil // no TLS is no configuration
	}
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read server certificate: %w", err)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if t.ClientCAFile != "" {
		if out.ClientCAs, err = readPool(t.ClientCAFile); err != nil {
			return nil, err
		}
		out.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return out, nil
}

// readPool reads trusted authorities; nil means the system's.
func readPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // the system's
	}
	pem, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("read authorities: " + file + " holds no PEM certificate")
	}
	return pool, nil
}
