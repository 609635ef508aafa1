// Package app is what the commands share: the configuration, logs, the admin server, the life of a process from its flags to
// its exit code, and the wiring of the pipeline's parts.
package app

import (
	"time"
)

// Config is the one configuration of all processes. [Default] fills it, [Load] reads a file over the defaults.
//
// The tags are the reference: yaml names the key, doc describes it (docs/config.md is made from it), and min, max, one, later
// and need are checked by [Config.Validate]. "later" lists values that are understood and refused as not in this version.
type Config struct {
	Kafka    Kafka             `yaml:"kafka" doc:"The Kafka cluster, its topics and groups."`
	Sources  map[string]Source `yaml:"sources" doc:"Where events come from, by name. The name is part of each event's ce_source."`
	Sinks    map[string]Sink   `yaml:"sinks" doc:"Where messages are stored, by name. Each sink has a consumer group of its own."`
	Rules    []Rule            `yaml:"rules" doc:"What is done with which event, in EMQX's own words."`
	Ingest   Ingest            `yaml:"ingest" doc:"The process that takes events from the sources into Kafka."`
	Writer   Writer            `yaml:"writer" doc:"The process that writes to the sinks."`
	Replayer Replayer          `yaml:"replayer" doc:"The process that hands stored messages over."`
	Delivery Delivery          `yaml:"delivery" doc:"How a stored message reaches its client."`
	Shutdown Shutdown          `yaml:"shutdown" doc:"How a process ends."`
	Admin    Admin             `yaml:"admin" doc:"The HTTP server for probes and metrics. It asks for no password: keep it inside."`
	Log      Log               `yaml:"log" doc:"Logs go to stderr, one JSON object a line."`
}

// Kafka is the cluster and what is ours in it.
type Kafka struct {
	Brokers          Addresses     `yaml:"brokers" doc:"Bootstrap brokers, host:port; a list, or one text with commas. Not needed by restante up."`
	ClientID         string        `yaml:"client_id" need:"true" doc:"The client id that the brokers see."`
	Names            Names         `yaml:"names" doc:"The prefixes of all names in Kafka."`
	Messages         KafkaTopic    `yaml:"messages" doc:"The topic of publishes and acks, keyed by MQTT topic."`
	Sessions         KafkaTopic    `yaml:"sessions" doc:"The topic of subscribes and connections, keyed by client id."`
	Dead             KafkaTopic    `yaml:"dead" doc:"The topic of records that can never be processed."`
	SessionTimeout   time.Duration `yaml:"session_timeout" min:"3s" max:"30m" doc:"After this time without a heartbeat a member's partitions go to another."`
	RebalanceTimeout time.Duration `yaml:"rebalance_timeout" min:"3s" max:"30m" doc:"How long a rebalance waits for members that finish what they hold."`
	TLS              TLS           `yaml:"tls" doc:"TLS to the brokers."`
	SASL             SASL          `yaml:"sasl" doc:"The login at the brokers."`
}

// Names are the prefixes of the names in Kafka.
type Names struct {
	Topics string `yaml:"topics" need:"true" doc:"The prefix of the topics: mqtt gives mqtt.messages, mqtt.sessions and mqtt.dead."`
	Groups string `yaml:"groups" need:"true" doc:"The prefix of the groups: restante gives restante.replayer and restante.writer.<sink>."`
}

// KafkaTopic is how restante migrate makes a topic.
type KafkaTopic struct {
	Partitions  int           `yaml:"partitions" min:"1" max:"10000" doc:"The partitions that keys are spread over. Change it only when the groups have no lag. restante up has one."`
	Replication int           `yaml:"replication" min:"0" max:"15" doc:"Copies of each partition; 0 = 3 for messages, and as many as messages has for the others. restante up has one."`
	MinInsync   int           `yaml:"min_insync" min:"0" max:"15" doc:"Copies that must have a record before it counts; 0 = one less than replication, at least 1."`
	Retention   time.Duration `yaml:"retention" min:"1m" doc:"How long records are kept: longer than the longest outage to survive."`
}

// TLS is the client's side of TLS.
type TLS struct {
	Enabled    bool   `yaml:"enabled" doc:"Whether to use TLS. A URL that says mqtts or ssl uses it anyhow."`
	CAFile     string `yaml:"ca_file" doc:"PEM file of the authorities to trust; empty = the system's."`
	CertFile   string `yaml:"cert_file" doc:"PEM file of the client certificate."`
	KeyFile    string `yaml:"key_file" doc:"PEM file of its key."`
	ServerName string `yaml:"server_name" doc:"The name that the server's certificate must have; empty = the host that is dialled."`
}

// ListenTLS is the server's side of TLS.
type ListenTLS struct {
	Enabled      bool   `yaml:"enabled" doc:"Whether clients must use TLS."`
	CertFile     string `yaml:"cert_file" doc:"PEM file of the server certificate."`
	KeyFile      string `yaml:"key_file" doc:"PEM file of its key."`
	ClientCAFile string `yaml:"client_ca_file" doc:"PEM file of the authorities whose client certificates are demanded; empty = none are asked for."`
}

// SASL is the login at Kafka.
type SASL struct {
	Mechanism    string `yaml:"mechanism" one:"|plain|scram-sha-256|scram-sha-512|aws-msk-iam" later:"oauthbearer|gssapi" doc:"How to log in; empty = not at all. aws-msk-iam takes credentials as AWS's tools do (environment, profile, role, service account), anew at each connect, and needs TLS."`
	User         string `yaml:"user" doc:"The user name."`
	Password     Secret `yaml:"password" doc:"The password, or use password_file."`
	PasswordFile string `yaml:"password_file" doc:"File that holds the password."`
	Region       string `yaml:"region" doc:"With aws-msk-iam, the region of the cluster; empty = the one that AWS's tools would take."`
}

// Source is one source: its type and what that type needs, in one mapping.
type Source struct {
	Type     string          `yaml:"type" need:"true" one:"embedded|exhook|mqtt|webhook" doc:"What kind of source it is."`
	Embedded *EmbeddedSource `yaml:"-"`
	Exhook   *ExhookSource   `yaml:"-"`
	MQTT     *MQTTSource     `yaml:"-"`
	Webhook  *WebhookSource  `yaml:"-"`
}

// EmbeddedSource is a broker inside the ingest process.
type EmbeddedSource struct {
	Listen    string    `yaml:"listen" need:"true" doc:"The address for MQTT clients."`
	TLS       ListenTLS `yaml:"tls" doc:"TLS for the clients."`
	UsersFile string    `yaml:"users_file" doc:"File with a line user:password for each user that may connect; empty = anybody may."`
	Node      string    `yaml:"node" need:"true" doc:"The broker's name in events and client rows."`
}

// ExhookSource is a gRPC server that EMQX calls.
type ExhookSource struct {
	Listen string        `yaml:"listen" need:"true" doc:"The address that the brokers call."`
	TLS    ListenTLS     `yaml:"tls" doc:"TLS for the brokers."`
	Budget time.Duration `yaml:"budget" min:"100ms" max:"1m" doc:"How long a call waits for its event to be durable, in Kafka or in the spool. Then it is answered as failed, and counted as a gap. It must be less than the broker's request_timeout, 5s by default."`
	Node   string        `yaml:"node" doc:"The broker's name in events and client rows; empty = the node that each call names."`
}

// MQTTSource subscribes at a broker.
type MQTTSource struct {
	URL            Addresses     `yaml:"url" need:"true" doc:"The broker, mqtt://host:1883 or mqtts://host:8883; several are tried in turn."`
	Decode         string        `yaml:"decode" one:"plain|emqx|mosquitto" doc:"What the messages are: plain = what clients publish, emqx = the JSON events of EMQX's rule engine, mosquitto = plain, and the lines of Mosquitto's log."`
	Filters        List          `yaml:"filters" doc:"What to subscribe to; empty = the topics of all rules on message.publish, with decode: emqx restante/events. With decode: mosquitto its log comes beside them."`
	ClientPrefix   string        `yaml:"client_prefix" need:"true" doc:"The client ids are <prefix>ingest-<ordinal>-<connection>. Replays and events of clients with this prefix are known as our own."`
	Ordinal        int           `yaml:"ordinal" min:"0" max:"65535" doc:"The number of this ingest process. It must stay the same over restarts: the broker keeps the session for it."`
	Connections    int           `yaml:"connections" min:"0" max:"256" doc:"How many connections share the filters; 0 = 4, with decode: emqx or mosquitto 1, since a client's events must keep their order."`
	QoS            int           `yaml:"qos" min:"1" max:"2" doc:"The QoS of the subscriptions."`
	User           string        `yaml:"user" doc:"The user name."`
	Password       Secret        `yaml:"password" doc:"The password, or use password_file."`
	PasswordFile   string        `yaml:"password_file" doc:"File that holds the password."`
	TLS            TLS           `yaml:"tls" doc:"TLS to the broker."`
	ReceiveMaximum int           `yaml:"receive_maximum" min:"1" max:"65535" doc:"How many messages the broker may send before the first is acknowledged."`
	SessionExpiry  time.Duration `yaml:"session_expiry" min:"1m" doc:"How long the broker keeps our messages while we are away."`
	FetchTopic     string        `yaml:"fetch_topic" doc:"With decode: plain or mosquitto, the topic to which a client publishes a filter to ask for its messages; empty = off. It holds {clientid} as one level."`
	BrokerDrops    bool          `yaml:"broker_drops" doc:"Watch the broker's own counter of dropped deliveries under $SYS, over a connection of its own. A broker that does not allow that is not asked again before the next start."`
}

// WebhookSource is an HTTP server that brokers post to.
type WebhookSource struct {
	Listen     string        `yaml:"listen" need:"true" doc:"The address that the brokers post to."`
	Path       string        `yaml:"path" need:"true" doc:"The path of the URL that they post to; any other is answered with 404."`
	Format     string        `yaml:"format" need:"true" one:"emqx-rule|emqx-webhook|vernemq" doc:"What they post: emqx-rule = the JSON of EMQX's rule engine, one event or an array, emqx-webhook = that of the plugin emqx_web_hook of EMQX 4, vernemq = that of VerneMQ's webhooks."`
	Payload    string        `yaml:"payload" one:"base64|plain" doc:"How emqx-webhook and vernemq write payloads, as the broker is set; emqx-rule tells it by the name of the field."`
	TLS        ListenTLS     `yaml:"tls" doc:"TLS for the brokers."`
	Token      Secret        `yaml:"token" doc:"What must stand in the header Authorization behind Bearer, 16 bytes or more; empty = nothing. Or use token_file."`
	TokenFile  string        `yaml:"token_file" doc:"File that holds the token."`
	HMACKey    Secret        `yaml:"hmac_key" doc:"The key of the HMAC-SHA256 of the body that hmac_header must hold in hex, 16 bytes or more; empty = none is asked for. Or use hmac_key_file."`
	HMACFile   string        `yaml:"hmac_key_file" doc:"File that holds the key."`
	HMACHeader string        `yaml:"hmac_header" need:"true" doc:"The header of the HMAC."`
	Budget     time.Duration `yaml:"budget" min:"100ms" max:"1m" doc:"How long a request waits for its events to be durable. Then it is answered with 503. It must be less than the broker's time-out."`
	MaxBody    Size          `yaml:"max_body" min:"0" max:"128MiB" doc:"Larger bodies are answered with 413; 0 = 4MiB, or more where ingest.max_payload in base64 needs it."`
}

// Ingest are the limits of ingest.
type Ingest struct {
	MaxPayload Size  `yaml:"max_payload" min:"1KiB" max:"64MiB" doc:"Messages with a larger payload go to the dead letters."`
	Spool      Spool `yaml:"spool" doc:"Where events are kept on disk, and acknowledged, while Kafka is away."`
}

// Spool is ingest's own disk.
type Spool struct {
	Path  string        `yaml:"path" doc:"The directory, on a disk that outlives the process; each ingest needs one of its own. Empty = no spool: sources wait for Kafka. Not used by restante up."`
	Size  Size          `yaml:"size" min:"128MiB" doc:"How much it may hold. When it is full, sources are not acknowledged until there is room."`
	After time.Duration `yaml:"after" min:"50ms" max:"1m" doc:"Events go to the spool when Kafka has not taken one for so long. It must be at most half of the budget of exhook sources."`
}

// used reports whether there is one.
func (s Spool) used() bool { return s.Path != "" }

// Writer is how writers batch.
type Writer struct {
	Hold            time.Duration `yaml:"hold" min:"0s" max:"1m" doc:"How long fresh records wait in memory: a message that is acked meanwhile is never written."`
	MaxBatchRecords int           `yaml:"max_batch_records" min:"1" max:"1000000" doc:"More held records than this, per partition, are written before their time."`
	MaxBatchBytes   Size          `yaml:"max_batch_bytes" min:"64KiB" max:"1GiB" doc:"More held bytes than this, per partition, are written before their time."`
	FlushTimeout    time.Duration `yaml:"flush_timeout" min:"100ms" max:"10m" doc:"The limit of one attempt to write; after it the attempt is repeated."`
}

// Replayer is how replays run.
type Replayer struct {
	Window        int           `yaml:"window" min:"1" max:"65535" doc:"How many messages a client may leave un-acked before the next is sent."`
	ClockSkew     time.Duration `yaml:"clock_skew" min:"0s" max:"5m" doc:"How far the clocks of the broker's nodes may differ; 0 only for one embedded broker."`
	ResumeDelay   time.Duration `yaml:"resume_delay" min:"0s" max:"10m" doc:"How long a replay waits when the subscription may have been there before: the broker hands over its own queue first. It does not wait where the source tells that the session or the subscription is new."`
	Settle        time.Duration `yaml:"settle" min:"0s" max:"10m" doc:"After a replay from an asynchronous source, look once more after this time."`
	SliceMessages int           `yaml:"slice_messages" min:"1" max:"1000000" doc:"A longer replay is cut into slices of this many messages."`
	AckTimeout    time.Duration `yaml:"ack_timeout" min:"1s" max:"1h" doc:"A client that acks nothing for so long is left alone for a while."`
	MaxActive     int           `yaml:"max_active" min:"1" max:"1000000" doc:"Replays at a time in one process; the others wait."`
	MaxReads      int           `yaml:"max_reads" min:"1" max:"10000" doc:"Reads of one store at a time in one process; the others wait in their order."`
	ReadLatency   time.Duration `yaml:"read_latency" min:"1ms" max:"1m" doc:"While reads of a store take longer on average, fewer of them run at a time."`
	TailBudget    Size          `yaml:"tail_budget" min:"1MiB" max:"16GiB" doc:"Memory for what the writers have not written yet."`
	QoS0Subscribe string        `yaml:"qos0_subscribe" one:"skip|repeat|once" doc:"What a subscribe at QoS 0 gets: skip = no replay, counted; repeat = everything that is stored, at each such subscribe, and nothing is removed by it; once = what is stored, and what the broker has taken is removed as if it were acked."`
	Rate          Rate          `yaml:"rate" doc:"Limits of replayed messages a second."`
}

// Rate are limits in messages a second.
type Rate struct {
	Client  int `yaml:"client" min:"0" max:"1000000" doc:"Messages a second to one client; 0 = no limit."`
	Process int `yaml:"process" min:"0" max:"10000000" doc:"Messages a second from one process; 0 = no limit."`
}

// Delivery is the way from the store to the client.
type Delivery struct {
	To         string       `yaml:"to" one:"topic|prefix|direct" doc:"topic = the message's own topic, prefix = a topic for one client, direct = into the session, for an embedded broker in the same process."`
	Prefix     string       `yaml:"prefix" need:"true" doc:"The topic that prefix delivers to. It holds {clientid} and, at its end, {topic}."`
	Evidence   string       `yaml:"evidence" one:"broker|puback|app" doc:"When a message counts as delivered: broker = the broker reports the client's ack, puback = the broker took it, app = the client publishes the correlation data of the replay to its response topic."`
	AckTopic   string       `yaml:"ack_topic" need:"true" doc:"With evidence: app, the response topic of replays. It holds {clientid} as one level; sources of type mqtt with decode: plain or mosquitto subscribe to it."`
	Retains    bool         `yaml:"broker_retains" doc:"Whether the broker keeps retained messages itself, and hands them to its subscribers. Then on_retain_lookup is off; with false it hands them over, and an embedded broker keeps none."`
	Secret     Secret       `yaml:"secret" doc:"The key of the mark by which sources recognise replays, the same for ingest and replayer; or use secret_file."`
	SecretFile string       `yaml:"secret_file" doc:"File that holds the key in its first line; while keys are changed, the other key in its second."`
	MQTT       DeliveryMQTT `yaml:"mqtt" doc:"The connections that topic and prefix publish on."`
	API        DeliveryAPI  `yaml:"api" doc:"The HTTP API by which on_subscribe_lookup has the broker subscribe clients. With delivery direct the embedded broker does it without."`
}

// DeliveryMQTT are the replayer's connections to the broker.
type DeliveryMQTT struct {
	URL          Addresses `yaml:"url" doc:"The broker, mqtt://host:1883 or mqtts://host:8883. Needed unless delivery is direct."`
	User         string    `yaml:"user" doc:"The user name."`
	Password     Secret    `yaml:"password" doc:"The password, or use password_file."`
	PasswordFile string    `yaml:"password_file" doc:"File that holds the password."`
	Connections  int       `yaml:"connections" min:"1" max:"256" doc:"How many connections publish; one topic always uses the same."`
	ClientPrefix string    `yaml:"client_prefix" need:"true" doc:"The client ids are <prefix>replay-<instance>-<connection>. Sources drop what such clients publish."`
	TLS          TLS       `yaml:"tls" doc:"TLS to the broker."`
}

// DeliveryAPI is the broker's HTTP API.
type DeliveryAPI struct {
	Type       string        `yaml:"type" one:"|emqx" doc:"Whose API it is; empty = there is none, and on_subscribe_lookup needs delivery direct."`
	Version    int           `yaml:"version" min:"4" max:"5" doc:"EMQX's version: 4 for 4.3 and 4.4, 5 for all later ones."`
	URL        string        `yaml:"url" doc:"The address without /api, such as http://emqx:18083, for version 4 http://emqx:8081."`
	Key        string        `yaml:"key" doc:"The API key; for version 4 the id of an application."`
	Secret     Secret        `yaml:"secret" doc:"Its secret, or use secret_file."`
	SecretFile string        `yaml:"secret_file" doc:"File that holds the secret."`
	Timeout    time.Duration `yaml:"timeout" min:"100ms" max:"1m" doc:"How long a request may take."`
	TLS        TLS           `yaml:"tls" doc:"TLS to the API. A URL that says https uses it anyhow."`
}

// Shutdown is how a process ends.
type Shutdown struct {
	Drain time.Duration `yaml:"drain" min:"0s" max:"10m" doc:"How long a process may finish what it holds after SIGTERM. Five seconds more must be less than kafka.session_timeout."`
}

// Admin is the admin server.
type Admin struct {
	Listen string `yaml:"listen" doc:"The address of /livez, /readyz and /metrics; empty = no server."`
	PProf  bool   `yaml:"pprof" doc:"Whether /debug/pprof/ is served too. It shows memory."`
}

// Log is how much is logged.
type Log struct {
	Level string `yaml:"level" one:"debug|info|warn|error" doc:"The lowest level that is logged."`
}

// Default is the configuration before any file is read: no sources, no sinks, no rules.
func Default() Config {
	return Config{
		Kafka: Kafka{
			ClientID:         "restante",
			Names:            Names{Topics: "mqtt", Groups: "restante"},
			Messages:         KafkaTopic{Partitions: 12, Retention: 72 * time.Hour},
			Sessions:         KafkaTopic{Partitions: 12, Retention: 72 * time.Hour},
			Dead:             KafkaTopic{Partitions: 4, Retention: 336 * time.Hour},
			SessionTimeout:   30 * time.Second,
			RebalanceTimeout: 30 * time.Second,
		},
		Ingest: Ingest{MaxPayload: 256 * KiB, Spool: Spool{Size: GiB, After: 500 * time.Millisecond}},
		Writer: Writer{Hold: time.Second, MaxBatchRecords: 4096, MaxBatchBytes: 8 * MiB, FlushTimeout: 10 * time.Second},
		Replayer: Replayer{
			Window: 16, ClockSkew: 2 * time.Second, ResumeDelay: 2 * time.Second, Settle: 10 * time.Second, SliceMessages: 1000,
			AckTimeout: 30 * time.Second, MaxActive: 2000, MaxReads: 64, ReadLatency: 100 * time.Millisecond, TailBudget: 64 * MiB, QoS0Subscribe: "skip",
		},
		Delivery: Delivery{
			To: "topic", Prefix: "offline/{clientid}/{topic}", Evidence: "broker", AckTopic: "offline/ack/{clientid}", Retains: true,
			MQTT: DeliveryMQTT{Connections: 4, ClientPrefix: "restante-"},
			API:  DeliveryAPI{Version: 5, Timeout: 5 * time.Second},
		},
		Shutdown: Shutdown{Drain: 20 * time.Second},
		Admin:    Admin{Listen: ":8080"},
		Log:      Log{Level: "info"},
	}
}

// variant is a mapping whose "type" decides which other keys it has.
type variant interface {
	// choose makes the part of the type, with its defaults, and returns it; nil when there is no such type.
	choose(typ string) any
	// chosen returns the part, nil when none was chosen.
	chosen() any
}

var _ variant = (*Source)(nil)

func (s *Source) choose(typ string) any {
	*s = Source{Type: typ}
	switch typ {
	case "embedded":
		s.Embedded = &EmbeddedSource{Listen: "127.0.0.1:1883", Node: "embedded"}
	case "exhook":
		s.Exhook = &ExhookSource{Listen: "127.0.0.1:9000", Budget: 2 * time.Second}
	case "mqtt":
		s.MQTT = &MQTTSource{
			Decode: "plain", ClientPrefix: "restante-", QoS: 1,
			ReceiveMaximum: 1024, SessionExpiry: 24 * time.Hour, FetchTopic: "offline/fetch/{clientid}", BrokerDrops: true,
		}
	case "webhook":
		s.Webhook = &WebhookSource{
			Listen: "127.0.0.1:8090", Path: "/events", Payload: "base64", HMACHeader: "X-Restante-Signature", Budget: 2 * time.Second,
		}
	}
	return s.chosen()
}

func (s *Source) chosen() any {
	switch {
	case s.Embedded != nil:
		return s.Embedded
	case s.Exhook != nil:
		return s.Exhook
	case s.MQTT != nil:
		return s.MQTT
	case s.Webhook != nil:
		return s.Webhook
	}
	return nil
}
