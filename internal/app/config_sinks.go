package app

import (
	"net/url"
	"regexp"
	"time"
)

// Sink is one sink: its type and what that type needs, in one mapping.
type Sink struct {
	Type      string         `yaml:"type" need:"true" one:"cassandra|dynamodb|sqlite|memory" doc:"What kind of store it is. memory forgets everything at the end of the process: for tests, in restante up only."`
	Cassandra *CassandraSink `yaml:"-"`
	DynamoDB  *DynamoDBSink  `yaml:"-"`
	SQLite    *SQLiteSink    `yaml:"-"`
	Memory    *MemorySink    `yaml:"-"`
}

// CassandraSink is a keyspace of a Cassandra cluster.
type CassandraSink struct {
	Hosts             Addresses     `yaml:"hosts" need:"true" doc:"The servers to ask first, host or host:port; the others are found through them. Without a port it is 9042."`
	Keyspace          string        `yaml:"keyspace" need:"true" doc:"The keyspace of the tables."`
	TablePrefix       string        `yaml:"table_prefix" doc:"What stands before the name of each table; empty = EMQX's own names."`
	User              string        `yaml:"user" doc:"The user name; empty = no login."`
	Password          Secret        `yaml:"password" doc:"The password, or use password_file."`
	PasswordFile      string        `yaml:"password_file" doc:"File that holds the password."`
	TLS               TLS           `yaml:"tls" doc:"TLS to the servers."`
	LocalDC           string        `yaml:"local_dc" doc:"The data center whose servers are used. All processes of one sink must name the same; empty = all servers."`
	Consistency       string        `yaml:"consistency" need:"true" one:"local_quorum|quorum|each_quorum|all|one|local_one|two|three" doc:"The consistency of all reads and writes. one is for a keyspace with one replica."`
	ReplicationFactor int           `yaml:"replication_factor" min:"0" max:"9" doc:"Replicas of a keyspace that restante migrate makes; 0 = up to three in local_dc, or one where that is empty."`
	Connections       int           `yaml:"connections" min:"1" max:"64" doc:"Connections to each server."`
	InFlight          int           `yaml:"in_flight" min:"1" max:"4096" doc:"The most requests that wait for an answer at a time."`
	ConnectTimeout    time.Duration `yaml:"connect_timeout" min:"100ms" doc:"How long the making of a connection may take."`
	WriteTimeout      time.Duration `yaml:"write_timeout" min:"100ms" doc:"How long a write may take: longer than the server's own time-out."`
	ReadTimeout       time.Duration `yaml:"read_timeout" min:"100ms" doc:"How long a read may take: longer than the server's own time-out."`
	Compress          bool          `yaml:"compress" doc:"Whether to send and receive in snappy."`
	MaxRow            Size          `yaml:"max_row" min:"64KiB" max:"64MiB" doc:"The most bytes of one message with all that it carries; must stay below the server's max_mutation_size (16 MiB by default)."`
	Foreign           bool          `yaml:"foreign" doc:"Whether others insert messages that are over an hour old into mqtt_msg. Reads then begin at the oldest id of a topic."`
}

// DynamoDBSink is a set of tables in DynamoDB.
type DynamoDBSink struct {
	Region              string        `yaml:"region" doc:"The AWS region; empty = that of the environment or the profile."`
	Endpoint            string        `yaml:"endpoint" doc:"The URL of the service where it is not the region's own, such as http://localhost:8000."`
	AccessKeyID         string        `yaml:"access_key_id" doc:"A static key. Empty = credentials as AWS's tools find them: environment, profile, web identity (IRSA), container, instance."`
	SecretAccessKey     Secret        `yaml:"secret_access_key" doc:"Its secret, or use secret_access_key_file."`
	SecretAccessKeyFile string        `yaml:"secret_access_key_file" doc:"File that holds the secret."`
	SessionToken        Secret        `yaml:"session_token" doc:"The token of a temporary key."`
	Profile             string        `yaml:"profile" doc:"A profile of the shared AWS configuration files; empty = the default one."`
	TablePrefix         string        `yaml:"table_prefix" doc:"What stands before the name of each table; empty = EMQX's own names."`
	PoolSize            int           `yaml:"pool_size" min:"1" max:"1024" doc:"The most requests in flight."`
	RequestTimeout      time.Duration `yaml:"request_timeout" min:"100ms" doc:"How long a request may take."`
	Strict              bool          `yaml:"strict" doc:"Whether a small item stays in the place of what was removed. No acknowledged message is ever delivered again then."`
	Billing             string        `yaml:"billing" need:"true" one:"provisioned|on_demand" doc:"How tables that restante migrate makes are billed."`
	ReadCapacity        int           `yaml:"read_capacity" min:"1" max:"40000" doc:"Read capacity units of each provisioned table."`
	WriteCapacity       int           `yaml:"write_capacity" min:"1" max:"40000" doc:"Write capacity units of each provisioned table."`
	TimeUnit            string        `yaml:"time_unit" need:"true" one:"s|ms" doc:"The unit of arrived, online_at and offline_at; s as in EMQX's tables."`
	MsgIDFormat         string        `yaml:"msgid_format" need:"true" one:"hex|base62" doc:"How message ids are written: hex = 32 digits in time order, base62 = as EMQX's plugin wrote them. Rows in the other form are not seen."`
	FirstIDs            int           `yaml:"first_ids" min:"1" max:"1000" doc:"How many ids a topic's item of mqtt_topic_msg_map holds before others go to buckets."`
}

// SQLiteSink is a SQLite database.
type SQLiteSink struct {
	Path         string        `yaml:"path" need:"true" doc:"The database file. Writer and replayer must see the same file."`
	TombstoneTTL time.Duration `yaml:"tombstone_ttl" min:"1h" doc:"How long deletions are remembered: longer than kafka.messages.retention, so that a record read again brings nothing back."`
}

// MemorySink is a map in the process.
type MemorySink struct{}

var _ variant = (*Sink)(nil)

func (s *Sink) choose(typ string) any {
	*s = Sink{Type: typ}
	switch typ {
	case "cassandra":
		s.Cassandra = &CassandraSink{
			Keyspace: "mqtt", Consistency: "local_quorum", Connections: 2, InFlight: 64, ConnectTimeout: 5 * time.Second,
			WriteTimeout: 3 * time.Second, ReadTimeout: 5 * time.Second, MaxRow: 8 * MiB,
		}
	case "dynamodb":
		s.DynamoDB = &DynamoDBSink{
			PoolSize: 8, RequestTimeout: 5 * time.Second, Billing: "provisioned", ReadCapacity: 5, WriteCapacity: 5, TimeUnit: "s",
			MsgIDFormat: "hex", FirstIDs: 30,
		}
	case "sqlite":
		s.SQLite = &SQLiteSink{TombstoneTTL: 240 * time.Hour}
	case "memory":
		s.Memory = &MemorySink{}
	}
	return s.chosen()
}

func (s *Sink) chosen() any {
	switch {
	case s.Cassandra != nil:
		return s.Cassandra
	case s.DynamoDB != nil:
		return s.DynamoDB
	case s.SQLite != nil:
		return s.SQLite
	case s.Memory != nil:
		return s.Memory
	}
	return nil
}

// checkSinks checks what the tags cannot say.
func (c Config) checkSinks(faults *Faults) {
	for _, name := range sortedKeys(c.Sinks) {
		path := "sinks." + name
		checkName(path, name, faults)
		switch s := c.Sinks[name]; {
		case s.Cassandra != nil:
			s.Cassandra.check(path, faults)
		case s.DynamoDB != nil:
			s.DynamoDB.check(path, faults)
		case s.SQLite != nil:
			if s.SQLite.TombstoneTTL <= c.Kafka.Messages.Retention {
				faults.add(path+".tombstone_ttl", "%s must be longer than kafka.messages.retention (%s): a record read again would bring a deleted message back",
					formatDuration(s.SQLite.TombstoneTTL), formatDuration(c.Kafka.Messages.Retention))
			}
		}
	}
}

func (s *CassandraSink) check(path string, faults *Faults) {
	checkTLS(path+".tls", s.TLS, faults)
	checkLogin(path, s.User, s.Password, s.PasswordFile, faults)
	for key, name := range map[string]string{"keyspace": s.Keyspace, "table_prefix": s.TablePrefix} {
		if name != "" && !plainName.MatchString(name) {
			faults.add(path+"."+key, "%q is no plain name: lower-case letters, digits and _, a letter first, at most 48", name)
		}
	}
}

func (s *DynamoDBSink) check(path string, faults *Faults) {
	if s.SecretAccessKey != "" && s.SecretAccessKeyFile != "" {
		faults.add(path+".secret_access_key_file", "stands beside secret_access_key: only one of them")
	}
	secret := s.SecretAccessKey != "" || s.SecretAccessKeyFile != ""
	switch {
	case s.AccessKeyID != "" && !secret:
		faults.add(path+".secret_access_key", "is missing: access_key_id needs it, or secret_access_key_file")
	case s.AccessKeyID == "" && secret:
		faults.add(path+".access_key_id", "is missing: secret_access_key needs it")
	case s.AccessKeyID == "" && s.SessionToken != "":
		faults.add(path+".access_key_id", "is missing: session_token needs it")
	case s.AccessKeyID != "" && s.Profile != "":
		faults.add(path+".profile", "stands beside access_key_id: only one of them")
	}
	if s.Endpoint != "" {
		if u, err := url.Parse(s.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			faults.add(path+".endpoint", "%q is no URL: http://host:port or https://host", s.Endpoint)
		}
	}
	if s.TablePrefix != "" && !tablePrefix.MatchString(s.TablePrefix) {
		faults.add(path+".table_prefix", "%q is no name for DynamoDB: letters, digits, '.', '_' and '-', at most 200", s.TablePrefix)
	}
}

var (
	plainName   = regexp.MustCompile(`^[a-z][a-z0-9_]{0,47}$`)
	tablePrefix = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,200}$`)
)
