package kafkalog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// Config is what a [Client] needs. Zero values mean the defaults named.
type Config struct {
	// Brokers are host:port addresses to begin with; at least one.
	Brokers []string
	// ClientID is what the brokers' logs call this process.
	ClientID string
	// TLS is nil for plain TCP.
	TLS *tls.Config
	// SASL is empty for no login.
	SASL SASL
	// Partitions maps each topic (its full name) to its configured number of partitions. Only these topics can be used.
	Partitions map[string]int

	// SessionTimeout is when the coordinator gives a silent member up (30 s).
	SessionTimeout time.Duration
	// RebalanceTimeout is how long a rebalance waits for the members (30 s).
	RebalanceTimeout time.Duration
	// HeartbeatInterval must be at most a third of SessionTimeout (1 s).
	HeartbeatInterval time.Duration
	// JoinGroupBackoff is the pause after a failed join (300 ms).
	JoinGroupBackoff time.Duration

	// MaxBatchBytes bounds a produce request, and with it a record (1,000,000, which is also the most).
	MaxBatchBytes int
	// Linger is how long a record waits for company (5 ms) while many partitions have requests under way. Otherwise a partition
	// sends at once what has come during its last request.
	Linger time.Duration
	// MaxInFlightBytes bounds what the producer holds; Append blocks beyond it (64 MiB).
	MaxInFlightBytes int64
	// FetchBytes bounds what a stream fetches at a time (1 MiB).
	FetchBytes int

	// Log is slog's default when nil.
	Log *slog.Logger
	// Metrics are counted and not exported when nil.
	Metrics *Metrics
}

// SASL is a login. Mechanism is empty (none), PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or AWS_MSK_IAM, which uses IAM alone.
type SASL struct {
	Mechanism string
	User      string
	Password  string
	IAM       IAM
}

const (
	maxBatchBytes = 1_000_000 // below the brokers' default message.max.bytes, with room for the batch's own header

	dialTimeout    = 3 * time.Second
	requestTimeout = 5 * time.Second  // of what answers at once
	produceTimeout = 10 * time.Second // the brokers get half of it for their replicas
	metadataTTL    = time.Second      // of kafka-go's list of brokers
	idleTimeout    = 30 * time.Second
)

func orElse[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (c Config) withDefaults() Config {
	c.SessionTimeout = orElse(c.SessionTimeout, 30*time.Second)
	c.RebalanceTimeout = orElse(c.RebalanceTimeout, 30*time.Second)
	c.HeartbeatInterval = orElse(c.HeartbeatInterval, time.Second)
	c.JoinGroupBackoff = orElse(c.JoinGroupBackoff, 300*time.Millisecond)
	c.MaxBatchBytes = orElse(c.MaxBatchBytes, maxBatchBytes)
	c.Linger = orElse(c.Linger, 5*time.Millisecond)
	c.MaxInFlightBytes = orElse(c.MaxInFlightBytes, 64<<20)
	c.FetchBytes = orElse(c.FetchBytes, 1<<20)
	c.Log = orElse(c.Log, slog.Default())
	c.Metrics = orElse(c.Metrics, NewMetrics(nil))
	return c
}

func (c Config) validate() error {
	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(len(c.Brokers) == 0, "brokers: none given")
	for _, b := range c.Brokers {
		_, _, err := net.SplitHostPort(b)
		refuse(err != nil, "brokers: %q is not host:port", b)
	}
	refuse(len(c.Partitions) == 0, "topics: none given")
	for t, n := range c.Partitions {
		refuse(n < 1, "topic %s: %d partitions", t, n)
	}
	for name, d := range map[string]time.Duration{
		"session timeout": c.SessionTimeout, "rebalance timeout": c.RebalanceTimeout,
		"heartbeat interval": c.HeartbeatInterval, "join back-off": c.JoinGroupBackoff, "linger": c.Linger,
	} {
		refuse(d < 0, "%s: %v is negative", name, d)
	}
	refuse(3*c.HeartbeatInterval > c.SessionTimeout, "heartbeat interval: %v is over a third of the session timeout %v",
		c.HeartbeatInterval, c.SessionTimeout)
	refuse(c.MaxBatchBytes < 1024 || c.MaxBatchBytes > maxBatchBytes, "batch bytes: %d is not within 1024 to %d",
		c.MaxBatchBytes, maxBatchBytes)
	refuse(c.MaxInFlightBytes < int64(c.MaxBatchBytes), "bytes in flight: %d is below one batch", c.MaxInFlightBytes)
	refuse(c.FetchBytes < 1024 || c.FetchBytes > 64<<20, "fetch bytes: %d is not within 1 KiB to 64 MiB", c.FetchBytes)
	return errors.Join(errs...)
}

func (s SASL) mechanism() (sasl.Mechanism, error) {
	switch strings.ToUpper(s.Mechanism) {
	case "":
		return nil, nil //nolint:nilnil // no login is a valid answer
	case "PLAIN":
		return plain.Mechanism{Username: s.User, Password: s.Password}, nil
	case "SCRAM-SHA-256":
		return scram256(s), nil
	case "SCRAM-SHA-512":
		return scram512(s), nil
	case "AWS_MSK_IAM":
		return s.IAM.mechanism()
	}
	return nil, fmt.Errorf("sasl mechanism %q is unknown: use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or AWS_MSK_IAM", s.Mechanism)
}

// Client is one Kafka cluster. It is safe for concurrent use.
type Client struct {
	cfg       Config
	log       *slog.Logger
	metrics   *Metrics
	mechanism sasl.Mechanism

	transport *kafka.Transport
	asking    *kafka.Client
	idle      idleConns
	known     leaderCache

	mu           sync.Mutex
	coordinators map[string]int // group → broker id, as last seen
}

// Open checks the configuration. It does not connect: brokers that are down are waited for by those who need them.
func Open(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	mechanism, err := cfg.SASL.mechanism()
	if err := errors.Join(cfg.validate(), err); err != nil {
		return nil, fault.Fatal(fmt.Errorf("configure kafka: %w", err))
	}
	c := &Client{
		cfg: cfg, log: cfg.Log, metrics: cfg.Metrics, mechanism: mechanism,
		idle:         idleConns{conns: map[pipeline.TP]*idleConn{}},
		known:        leaderCache{turn: make(chan struct{}, 1), topics: map[string]topicLeaders{}},
		coordinators: map[string]int{},
	}
	topics := make([]string, 0, len(cfg.Partitions))
	for t := range cfg.Partitions {
		topics = append(topics, t)
	}
	slices.Sort(topics)
	c.transport = c.newTransport(topics)
	c.asking = c.over(c.transport)
	c.metrics.expectTopics(topics)
	return c, nil
}

// Close closes idle connections. Groups, streams and producers of this client must be closed before.
func (c *Client) Close() {
	c.idle.close()
	c.transport.CloseIdleConnections()
}

func (c *Client) newTransport(topics []string) *kafka.Transport {
	return &kafka.Transport{
		Dial:        (&net.Dialer{Timeout: dialTimeout}).DialContext,
		DialTimeout: dialTimeout, IdleTimeout: idleTimeout,
		MetadataTTL: metadataTTL, MetadataTopics: topics,
		ClientID: c.cfg.ClientID, TLS: c.cfg.TLS, SASL: c.mechanism,
	}
}

func (c *Client) over(t *kafka.Transport) *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(c.cfg.Brokers...), Timeout: requestTimeout, Transport: t}
}

// fresh is a client whose first answers are not cached, and which sees all topics. The function given closes it.
func (c *Client) fresh() (*kafka.Client, func()) {
	t := c.newTransport(nil)
	return c.over(t), t.CloseIdleConnections
}

func (c *Client) dialer() *kafka.Dialer {
	return &kafka.Dialer{
		ClientID: c.cfg.ClientID, Timeout: dialTimeout, TLS: c.cfg.TLS, SASLMechanism: c.mechanism,
	}
}

// again calls fn until it succeeds or a few seconds have passed: a leader that moved and a pooled connection that broke are not
// worth an error.
func (c *Client) again(ctx context.Context, fn func() error) error {
	begin := time.Now()
	for try := 0; ; try++ {
		err := mark(fn())
		switch {
		case err == nil, fault.IsFatal(err), fault.IsPoison(err):
			return err
		case ctx.Err() != nil:
			return interrupted(ctx, err)
		case time.Since(begin) > 3*time.Second:
			return err
		}
		if pipeline.Sleep(ctx, time.Millisecond<<min(4*try, 8)) != nil {
			return interrupted(ctx, err)
		}
	}
}

// interrupted is the end of ctx, and what it kept from being tried again.
func interrupted(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w: %w", cause, err)
}
