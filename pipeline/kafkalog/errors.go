package kafkalog

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/restante/restante/fault"
)

// reasons are all values of [reason], for metrics.
var reasons = []string{
	"timeout", "network", "no_leader", "no_topic", "not_enough_replicas", "refused_record", "unauthorized", "throttled", "other",
}

// reason puts an error into one of a few classes.
func reason(err error) string {
	if k, ok := errors.AsType[kafka.Error](err); ok {
		return reasonOf(k)
	}
	var n net.Error
	switch {
	case errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return "no_topic"
	case errors.Is(err, protocol.ErrNoLeader):
		return "no_leader"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.As(err, &n):
		return "network"
	}
	return "other"
}

func reasonOf(k kafka.Error) string {
	switch k { //nolint:exhaustive // the rest is "other"
	case kafka.RequestTimedOut:
		return "timeout"
	case kafka.NetworkException, kafka.BrokerNotAvailable:
		return "network"
	case kafka.LeaderNotAvailable, kafka.NotLeaderForPartition, kafka.ReplicaNotAvailable, kafka.FencedLeaderEpoch,
		kafka.UnknownLeaderEpoch, kafka.KafkaStorageError:
		return "no_leader"
	case kafka.UnknownTopicOrPartition, kafka.UnknownTopicID, kafka.InvalidTopic:
		return "no_topic"
	case kafka.NotEnoughReplicas, kafka.NotEnoughReplicasAfterAppend:
		return "not_enough_replicas"
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidTimestamp, kafka.InvalidRecord:
		return "refused_record"
	case kafka.ThrottlingQuotaExceeded:
		return "throttled"
	}
	if unauthorized(k) {
		return "unauthorized"
	}
	return "other"
}

func unauthorized(k kafka.Error) bool {
	switch k { //nolint:exhaustive // a question about a few
	case kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism:
		return true
	}
	return false
}

// mark gives an error of Kafka its class: what no waiting heals is fatal, the rest transient.
func mark(err error) error {
	var k kafka.Error
	if errors.As(err, &k) && unauthorized(k) && !fault.IsFatal(err) {
		return fault.Fatal(err)
	}
	return err
}

// advice is what an operator can do about a reason.
func advice(reason string) string {
	switch reason {
	case "no_topic":
		return `the topic or partition is missing: run "restante migrate"`
	case "unauthorized":
		return "the login or its rights are refused: correct the credentials or the ACLs"
	case "not_enough_replicas":
		return "fewer brokers are in sync than min.insync.replicas asks for: look at the cluster"
	case "network":
		return "it goes on by itself when the brokers do; a refused login or a wrong TLS setting can look the same"
	}
	return "it goes on by itself when the brokers do"
}

// pause is the back-off before try n (from 0): 20 ms doubling to 1 s, jittered.
func pause(n int) time.Duration {
	d := min(20*time.Millisecond<<min(n, 10), time.Second)
	return d/2 + rand.N(d/2) //nolint:gosec // jitter needs no secrecy
}

// trouble logs an error that is retried: when its reason changes, then once a minute, and when it is over.
type trouble struct {
	log    *slog.Logger
	reason string
	logged time.Time
	since  time.Time
}

func (t *trouble) met(ctx context.Context, what string, err error) {
	r := reason(err)
	if t.reason == "" {
		t.since = time.Now()
	}
	if r == t.reason && time.Since(t.logged) < time.Minute {
		return
	}
	t.reason, t.logged = r, time.Now()
	t.log.WarnContext(ctx, "kafka fails, will retry", "doing", what, "reason", r, "err", err, "advice", cmp.Or(fault.TLSAdvice(err, "kafka.tls"), advice(r)))
}

func (t *trouble) over(ctx context.Context, what string) {
	if t.reason == "" {
		return
	}
	t.log.InfoContext(ctx, "kafka works again", "doing", what, "after", time.Since(t.since).Round(time.Millisecond))
	t.reason = ""
}
