package kafkalog

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/certtest"
	"github.com/restante/restante/pipeline"
)

func specs() []TopicSpec {
	return []TopicSpec{
		{Name: "a", Partitions: 4, Replication: 1, Config: map[string]string{
			"retention.ms": "259200000", "min.insync.replicas": "1", "message.timestamp.type": "CreateTime", "cleanup.policy": "delete",
			"unclean.leader.election.enable": "false",
		}},
		{Name: "b", Partitions: 2, Replication: 1, Config: map[string]string{"retention.ms": "1209600000"}},
	}
}

func TestMigrateMakesWhatIsMissingAndNothingElse(t *testing.T) {
	t.Parallel()
	client := newCluster(t).open(t)
	err := client.Verify(soon(t), specs())
	if !fault.IsFatal(err) || !strings.Contains(err.Error(), `topic a is missing: run "restante migrate"`) ||
		!strings.Contains(err.Error(), "topic b is missing") {
		t.Errorf("before: %v", err)
	}
	dry, err := client.Migrate(soon(t), specs(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Verify(soon(t), specs()); err == nil {
		t.Error("a dry run made the topics")
	}
	made, err := client.Migrate(soon(t), specs(), false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range dry {
		dry[i] = strings.Replace(dry[i], "would create", "created", 1)
	}
	want := []string{
		"created topic a: 4 partitions, replication 1, cleanup.policy=delete, message.timestamp.type=CreateTime, " +
			"min.insync.replicas=1, retention.ms=259200000, unclean.leader.election.enable=false",
		"created topic b: 2 partitions, replication 1, retention.ms=1209600000",
	}
	if diff := cmp.Diff(want, dry); diff != "" {
		t.Errorf("dry run (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := client.Verify(soon(t), specs()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if again, err := client.Migrate(soon(t), specs(), false); err != nil || len(again) > 0 {
		t.Errorf("again: %v, %v", again, err)
	}
}

func TestEveryDifferenceIsNamedAndNoneIsRepaired(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	if _, err := client.Migrate(soon(t), specs(), false); err != nil {
		t.Fatal(err)
	}
	other := specs()
	other[0].Partitions, other[0].Config["retention.ms"], other[0].Config["cleanup.policy"] = 6, "1000", "compact"
	other[1].Partitions, other[1].Replication = 1, 3
	for range 2 {
		lines, err := client.Migrate(soon(t), other, false)
		if !fault.IsFatal(err) {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{
			"topic a: it has 4 partitions and 6 are configured: add partitions", "topic a: retention.ms is 259200000 and 1000 is configured",
			"topic a: cleanup.policy is delete and compact is configured", "topic b: its replication is 1 and 3 is configured",
		} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is missing in\n%v", want, err)
			}
		}
		if want := []string{"warning: topic b has 2 partitions and 1 are configured: the others stay empty"}; !cmp.Equal(want, lines) {
			t.Errorf("got %q", lines)
		}
		if err := client.Verify(soon(t), other); !fault.IsFatal(err) {
			t.Errorf("verify: %v", err)
		}
	}
	if err := client.Verify(soon(t), specs()); err != nil {
		t.Errorf("something was repaired: %v", err)
	}
}

func TestMigrateSaysWhyATopicIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.InvalidReplicationFactor, Topic: "a"})
	lines, err := c.open(t).Migrate(soon(t), specs(), false)
	if !fault.IsFatal(err) || !strings.Contains(err.Error(), "create topic a") || len(lines) != 1 {
		t.Errorf("got %q, %v", lines, err)
	}
}

func TestUnreachableKafkaIsNamed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.open(t)
	if err := client.Ping(soon(t)); err != nil {
		t.Error(err)
	}
	c.wire.cut(true)
	if err := client.Ping(within(t, time.Second)); err == nil || !strings.Contains(err.Error(), "reach kafka at "+c.ListenAddrs()[0]) {
		t.Errorf("got %v", err)
	}
	if err := client.Verify(within(t, time.Second), specs()); !isDeadline(err) || fault.IsFatal(err) {
		t.Errorf("verify: %v", err)
	}
}

func TestConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	_, err := Open(Config{
		Brokers: []string{"host"}, Partitions: map[string]int{"a": 0}, SASL: SASL{Mechanism: "KERBEROS"},
		SessionTimeout: time.Second, MaxBatchBytes: 2_000_000, FetchBytes: 1,
	})
	if !fault.IsFatal(err) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		`"host" is not host:port`, "topic a: 0 partitions", `"KERBEROS" is unknown`, "over a third of the session timeout",
		"batch bytes: 2000000", "fetch bytes: 1",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in\n%v", want, err)
		}
	}
}

func TestLoginAndTLS(t *testing.T) {
	t.Parallel()
	cert, pool := certtest.Certificate(t)
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "us,e=r", "pässword"),
				kfake.ListenFn(func(network, address string) (net.Listener, error) {
					return tls.Listen(network, address, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
				}))
			login := func(password string) *Client {
				return c.open(t, func(cfg *Config) {
					cfg.SASL = SASL{Mechanism: mechanism, User: "us,e=r", Password: password}
					cfg.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
				})
			}
			client := login("pässword")
			put(t, client, 0, "a", "b")
			if got := values(readAll(t, client, 0, 0)); !cmp.Equal(got, []string{"a", "b"}) {
				t.Errorf("read %v", got)
			}
			commitAt(t, client, 1)
			// The cluster of the tests only hangs up. Real brokers say why, at first:
			if err := login("wrong").Ping(within(t, 300*time.Millisecond)); err == nil {
				t.Error("a wrong password is good enough")
			}
			c.ControlKey(int16(kmsg.SASLAuthenticate), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.KeepControl()
				res := r.ResponseKind().(*kmsg.SASLAuthenticateResponse)
				res.ErrorCode = kerr.SaslAuthenticationFailed.Code
				return res, nil, true
			})
			wrong := login("wrong")
			if err := wrong.Ping(soon(t)); !fault.IsFatal(err) {
				t.Errorf("a wrong password: %v", err)
			}
			if _, err := newGroup(t, wrong).Next(soon(t)); !fault.IsFatal(err) {
				t.Errorf("a wrong password joins: %v", err)
			}
		})
	}
}

// A broker that does not know the password cannot make the client believe that it does.
func TestScramRefusesAnImpostor(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string][]string{
		"a nonce of its own":    {"r=other,s=c2FsdA==,i=4096"},
		"our nonce, not longer": {"r=NONCE,s=c2FsdA==,i=4096"},
		"no salt":               {"r=NONCEx,s=,i=4096"},
		"too few iterations":    {"r=NONCEx,s=c2FsdA==,i=1"},
		"too many iterations":   {"r=NONCEx,s=c2FsdA==,i=2000000000"},
		"an error":              {"e=invalid-proof"},
		"a false signature":     {"r=NONCEx,s=c2FsdA==,i=4096", "v=AAAA"},
		"no signature":          {"r=NONCEx,s=c2FsdA==,i=4096", ""},
	} {
		session, first, err := scram256(SASL{User: "u", Password: "p"}).Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		nonce := string(first[strings.Index(string(first), "r=")+2:])
		for i, a := range answers {
			done, _, err := session.Next(t.Context(), []byte(strings.ReplaceAll(a, "NONCE", nonce)))
			if last := i == len(answers)-1; done || last != (err != nil) {
				t.Errorf("%s: done %v, %v", name, done, err)
			}
		}
	}
}

func TestMetricsBeginAtZeroAndAreWellNamed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	client := newCluster(t).open(t, func(cfg *Config) { cfg.Metrics = NewMetrics(reg) })
	newGroup(t, client)
	client.Log("tail")
	if n, err := testutil.GatherAndCount(reg, "restante_kafka_produce_errors_total"); err != nil || n != len(reasons) {
		t.Errorf("%d reasons, %v", n, err)
	}
	if n, err := testutil.GatherAndCount(reg, "restante_kafka_partition_assigned"); err != nil || n != 3 {
		t.Errorf("%d partitions, %v", n, err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	put(t, client, 0, "a")
	if n := testutil.ToFloat64(client.metrics.producedRecords.WithLabelValues(topic)); n != 1 {
		t.Errorf("%v records produced", n)
	}
}

func TestErrorsHaveAClass(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.TopicAuthorizationFailed, Count: -1})
	s := openStream(t, c.open(t), 0)
	if _, err := s.Fetch(soon(t), 1, time.Minute); !fault.IsFatal(err) {
		t.Errorf("reading without the right to: %v", err)
	}
	if r := reason(context.DeadlineExceeded); r != "timeout" {
		t.Errorf("got %s", r)
	}
	if r := reason(pipeline.ErrGap); r != "other" {
		t.Errorf("got %s", r)
	}
}
