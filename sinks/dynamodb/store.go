// Package dynamodb keeps a store in DynamoDB, in the six tables of EMQX's DynamoDB backend, name for name and attribute for
// attribute, and one of its own for the topic index.
//
// A message is an item of mqtt_msg and an id in mqtt_topic_msg_map, and is seen when both are there: the item is written before
// the id. A strict store keeps a small item in the place of what was removed ("gone"), so that writes commute; a plain one
// removes, as EMQX did, and in rare orders an acknowledged message is delivered once more. Both lose nothing.
package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	ddb "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go/logging"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/sinks"
)

// IDFormat is how a message id is written into the tables.
type IDFormat string

// The formats of message ids. Rows in another form than the configured one are not seen.
const (
	Hex    IDFormat = "hex"    // 32 upper-case hex digits, in time order
	Base62 IDFormat = "base62" // as EMQX's backend plugin wrote them
)

// Config says where the tables are and how they are used. Region, or an endpoint, is required.
type Config struct {
	// Region is the AWS region; "" = that of the environment or the profile.
	Region string
	// Endpoint is the URL of the service where it is not the region's own.
	Endpoint string
	// AccessKeyID and SecretAccessKey are a static pair, with a SessionToken when it is a temporary one. Without them the
	// credentials come the AWS way: environment, profile, web identity (IRSA), container, instance.
	AccessKeyID, SecretAccessKey, SessionToken string
	// Profile is a profile of the shared AWS configuration files; "" = the default one.
	Profile string
	// TablePrefix stands before the names of all tables.
	TablePrefix string

	// PoolSize is the most requests in flight; 0 = 8.
	PoolSize int
	// RequestTimeout limits one request; what it cuts off is unknown, and an error that is tried again. 0 = 5 s.
	RequestTimeout time.Duration
	// Strict keeps "gone" items in the place of what was removed, so that all writes commute.
	Strict bool
	// ByClient keeps the rows of mqtt_acked in a second table too, by client, for [Store.Positions], which finds nothing without it.
	ByClient bool
	// ReadOnly refuses to write, but for the removal of dead ids from the map when they are met.
	ReadOnly bool
	// Look refuses that removal too. It means something with ReadOnly only.
	Look bool

	// FirstIDs is how many ids a topic's item of mqtt_topic_msg_map holds before others go to buckets; 0 = 30.
	FirstIDs int
	// BucketMinutes is the span of time of a bucket; 0 = 10.
	BucketMinutes int
	// BucketBytes is the most that a bucket's item grows to; 0 = 30 KiB.
	BucketBytes int
	// Retention is that of the log: nothing that a late write could still meet is forgotten before it and 7 days are over.
	Retention time.Duration
	// TimeUnit is that of arrived, online_at and offline_at: time.Second, as in EMQX's tables, or time.Millisecond; 0 = time.Second.
	TimeUnit time.Duration
	// IDFormat is the form of msgid; "" = Hex.
	IDFormat IDFormat

	// OnDemand makes Migrate create tables that are billed by request instead of provisioned ones of Read- and WriteCapacity
	// units each (0 = 5).
	OnDemand                    bool
	ReadCapacity, WriteCapacity int64

	// Observe is told of each request; it must be fast and safe for concurrent use. nil = nobody asks.
	Observe func(Request)
	// InFlight is told that so many more requests are under way, or fewer, under the same conditions.
	InFlight func(change int)
	// Log is told what is only a hint; nil = nobody asks.
	Log *slog.Logger
	// Now is the wall clock that expiry goes by; nil = time.Now.
	Now func() time.Time
}

const (
	leastKeep   = 7 * 24 * time.Hour
	knownTopics = 1 << 17
)

func (c Config) withDefaults() (Config, error) {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&c.PoolSize, 8)
	def(&c.FirstIDs, 30)
	def(&c.BucketMinutes, 10)
	def(&c.BucketBytes, 30<<10)
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = 5 * time.Second
	}
	if c.TimeUnit == 0 {
		c.TimeUnit = time.Second
	}
	if c.IDFormat == "" {
		c.IDFormat = Hex
	}
	if c.ReadCapacity <= 0 {
		c.ReadCapacity = 5
	}
	if c.WriteCapacity <= 0 {
		c.WriteCapacity = 5
	}
	if c.InFlight == nil {
		c.InFlight = func(int) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	var errs []error
	if c.TimeUnit != time.Second && c.TimeUnit != time.Millisecond {
		errs = append(errs, fmt.Errorf("time unit %s: want 1s or 1ms", c.TimeUnit))
	}
	if c.IDFormat != Hex && c.IDFormat != Base62 {
		errs = append(errs, fmt.Errorf("message id format %q: want %q or %q", c.IDFormat, Hex, Base62))
	}
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") {
		errs = append(errs, errors.New("of access key id and secret access key one is missing: give both, or neither"))
	}
	const mostMinutes, mostBytes, mostFirst = 24 * 60, 300 << 10, 1000
	if c.BucketMinutes > mostMinutes || c.BucketBytes > mostBytes || c.FirstIDs > mostFirst {
		errs = append(errs, fmt.Errorf("buckets of %d minutes and %d bytes behind %d ids: want at most %d, %d and %d",
			c.BucketMinutes, c.BucketBytes, c.FirstIDs, mostMinutes, mostBytes, mostFirst))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fault.Fatal(fmt.Errorf("configure the dynamodb sink: %w", err))
	}
	return c, nil
}

// Store is a client of the tables.
type Store struct {
	cfg  Config
	keep time.Duration
	api  *ddb.Client
	http *http.Transport
	pool chan struct{} // a place for each request in flight

	turns  turns
	nodes  memo[int64]  // rows of the topic index → until when they stand, µs
	places memo[*place] // topics → what is known of their item
}

var _ sinks.Store = (*Store)(nil)

// Open prepares a client. It does not reach for the service, so it succeeds while that is down: the first call that needs it
// tells. Its errors say what to do.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, keep: max(leastKeep, cfg.Retention), pool: make(chan struct{}, cfg.PoolSize),
		nodes: memo[int64]{most: 2 * knownTopics}, places: memo[*place]{most: knownTopics},
	}
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(cfg.RequestTimeout)), config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if cfg.Region != "" {
		load = append(load, config.WithRegion(cfg.Region))
	}
	if cfg.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(cfg.Profile))
	}
	if cfg.AccessKeyID != "" {
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, cfg.SessionToken)))
	}
	awsConfig, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fault.Fatal(fmt.Errorf("load the AWS configuration: %w: put the files or the environment right", err))
	}
	if awsConfig.Region == "" {
		return nil, fault.Fatal(errors.New("the dynamodb sink has no region: give one in the config or in AWS_REGION"))
	}
	s.http = &http.Transport{Proxy: http.ProxyFromEnvironment}
	if c, ok := awsConfig.HTTPClient.(*awshttp.BuildableClient); ok { // with the certificates that the environment names
		s.http = c.GetTransport()
	}
	dialer := net.Dialer{Timeout: min(3*time.Second, cfg.RequestTimeout), KeepAlive: 30 * time.Second}
	s.http.DialContext, s.http.TLSHandshakeTimeout, s.http.ResponseHeaderTimeout = dialer.DialContext, 3*time.Second, cfg.RequestTimeout
	s.http.MaxIdleConns, s.http.MaxIdleConnsPerHost, s.http.IdleConnTimeout = cfg.PoolSize, cfg.PoolSize, 50*time.Second
	s.api = ddb.NewFromConfig(awsConfig, func(o *ddb.Options) {
		o.HTTPClient = &http.Client{Transport: transport{s.http}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		// The service's own sum over an answer is of no use beside TLS; the SDK takes the answer to a condition that was not met
		// for a damaged one, and warns on stderr.
		o.DisableValidateResponseChecksum = true
		o.Logger = logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
			cfg.Log.Debug("from the AWS SDK", "says", fmt.Sprintf(format, v...)) //nolint:sloglint // it gives no context
		})
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
	})
	return s, nil
}

// Close ends the connections.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

func (s *Store) table(name string) string { return s.cfg.TablePrefix + name }
