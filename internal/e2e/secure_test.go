package e2e

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/internal/certtest"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/internal/stack/ports"
)

const secureProcesses = `
kafka:
  brokers: %[1]q
  names: {topics: %[2]s, groups: %[2]s}
  messages: {partitions: %[3]d, replication: 1}
  sessions: {partitions: %[3]d}
  dead: {partitions: 1}
  tls: %[4]s
  sasl: %[5]s
sources: {plant: {type: mqtt, url: %[6]q, decode: plain, connections: 1, tls: %[7]s}}
sinks: {history: {type: cassandra, hosts: %[8]q, keyspace: %[2]s, user: %[9]s, password: %[10]s, tls: %[11]s}}
rules: [{topic: "t/#", action: save_offline_messages, sink: history}]
delivery: {to: topic, evidence: puback, secret_file: %[12]q, mqtt: {url: %[6]q, tls: %[7]s}}
admin: {listen: %[13]q}
`

// secured is a world of servers that demand TLS and a certificate, and of a Kafka where one can log in too.
type secured struct {
	*world
	certs    certificates
	server   map[string]string // the address of each
	password string            // of Cassandra
}

// certificates are those of the authority that all servers trust, and of one that nobody trusts.
type certificates struct {
	trusted, unknown *certtest.Authority
	client, stranger certtest.Pair
}

// by is how a client comes: whom it trusts, what it shows, and as whom it takes the server.
func (c certificates) by(authority *certtest.Authority, shown certtest.Pair, name string) string {
	return fmt.Sprintf("{enabled: true, ca_file: %q, cert_file: %q, key_file: %q, server_name: %q}", authority.File, shown.Cert, shown.Key, name)
}

func newSecured(t *testing.T) *secured {
	t.Helper()
	trusted, unknown := certtest.NewAuthority(t), certtest.NewAuthority(t)
	identity := stack.TLS{Identity: trusted.Issue(t, "localhost", "127.0.0.1"), Clients: trusted}
	logins := stack.OwnTLS(t, stack.Kafka, identity)
	giveSCRAM(t, logins.Address())
	mqtts := ports.Addr(t)
	_, port, _ := strings.Cut(mqtts, ":")
	s := &secured{
		world:    newWorld(t, logins.Address()),
		certs:    certificates{trusted: trusted, unknown: unknown, client: trusted.Issue(t, "restante"), stranger: unknown.Issue(t, "restante")},
		password: stack.Password,
		server: map[string]string{
			"ssl": logins.SSL(), "sasl": logins.SASL(), "cassandra": stack.OwnTLS(t, stack.Cassandra, identity).SSL(), "mqtt": mqtts,
		},
	}
	s.broker = stack.Mosquitto(t, fmt.Sprintf("%s\nuser root\nlistener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\n",
		onPage(t, "```\n# mosquitto.conf\n"), port, trusted.File, identity.Identity.Cert, identity.Identity.Key))
	return s
}

// giveSCRAM gives the user a password for the mechanisms that Kafka keeps by itself.
func giveSCRAM(t *testing.T, addr string) {
	t.Helper()
	const rounds = 4096
	c := &kafka.Client{Addr: kafka.TCP(addr)}
	for mechanism, h := range map[kafka.ScramMechanism]func() hash.Hash{kafka.ScramMechanismSha256: sha256.New, kafka.ScramMechanismSha512: sha512.New} {
		salt := []byte(rand.Text())
		salted, err := pbkdf2.Key(h, stack.Password, salt, rounds, h().Size())
		if err != nil {
			t.Fatal(err)
		}
		// One request for each: Kafka takes a user but once in one.
		answer, err := c.AlterUserScramCredentials(t.Context(), &kafka.AlterUserScramCredentialsRequest{Upsertions: []kafka.UserScramCredentialsUpsertion{
			{Name: stack.User, Mechanism: mechanism, Iterations: rounds, Salt: salt, SaltedPassword: salted},
		}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range answer.Results {
			if r.Error != nil {
				t.Fatal(r.Error)
			}
		}
	}
}

// come says how the processes come to the servers.
func (s *secured) come(brokers, kafkaTLS, sasl, mqtt, mqttTLS, cassandraTLS string) {
	s.configure = func(admin string) string {
		return fmt.Sprintf(secureProcesses, brokers, s.name, partitions, kafkaTLS, sasl, mqtt, mqttTLS, s.server["cassandra"], stack.User, s.password,
			cassandraTLS, filepath.Join(s.dir, "secret"), admin)
	}
}

func (s *secured) login(mechanism, password string) string {
	return fmt.Sprintf("{mechanism: %s, user: %s, password: %q}", mechanism, stack.User, password)
}

// TestEachWayInIsKeptByTLSAndLogin: a real Kafka, Cassandra and Mosquitto that let nobody in who does not show what they ask for.
func TestEachWayInIsKeptByTLSAndLogin(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	c := s.certs
	mqtts, right := "mqtts://"+s.server["mqtt"], c.by(c.trusted, c.client, "")
	check := func() (int, string) { return s.restante("check", "-c", s.config("check")) }

	for name, way := range map[string]struct{ at, tls, sasl string }{
		"a certificate": {"ssl", right, "{}"},
		"PLAIN":         {"sasl", fmt.Sprintf("{enabled: true, ca_file: %q}", c.trusted.File), s.login("plain", stack.Password)},
		"SCRAM-SHA-256": {"sasl", right, s.login("scram-sha-256", stack.Password)},
		"SCRAM-SHA-512": {"sasl", right, s.login("scram-sha-512", stack.Password)},
	} {
		s.come(s.server[way.at], way.tls, way.sasl, mqtts, right, right)
		if code, out := s.restante("migrate", "-c", s.config("migrate")); code != 0 {
			t.Fatalf("%s: migrate: exit code %d:\n%s", name, code, out)
		}
		if code, out := check(); code != 0 {
			t.Errorf("%s: check: exit code %d:\n%s", name, code, out)
		}
	}

	for name, wrong := range map[string]struct {
		tls  string
		want [3]string // of Kafka, Cassandra and the broker
	}{
		"an authority that did not sign the server": {
			c.by(c.unknown, c.client, ""), [3]string{"certificate into kafka.tls.ca_file", "certificate into tls.ca_file", "certificate into tls.ca_file"},
		},
		"another name": {
			c.by(c.trusted, c.client, "elsewhere"), [3]string{"kafka.tls.server_name right", "tls.server_name right", "tls.server_name right"},
		},
		"a stranger's certificate": {
			c.by(c.trusted, c.stranger, ""), [3]string{"refuses this client: put kafka.tls.cert_file", "refuses this client: put tls.cert_file", "tls.cert_file and tls.key_file"},
		},
		"no certificate": {
			fmt.Sprintf("{enabled: true, ca_file: %q}", c.trusted.File),
			[3]string{"refuses this client: put kafka.tls.cert_file", "refuses this client: put tls.cert_file", "tls.cert_file and tls.key_file"},
		},
	} {
		s.come(s.server["ssl"], wrong.tls, "{}", mqtts, wrong.tls, wrong.tls)
		s.refused(name, wrong.want[0], wrong.want[1], wrong.want[2])
	}
	s.come(s.server["ssl"], "{}", "{}", "mqtt://"+s.server["mqtt"], "{}", right)
	s.refused("no TLS", "broker appears to be expecting TLS", "", "wants mqtts://")
	s.password = "wrong"
	for _, m := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		s.come(s.server["sasl"], right, s.login(m, s.password), mqtts, right, right)
		s.refused(m+" with a wrong password", "put kafka.sasl right", "put user and password right", "")
	}
	s.password = stack.Password

	s.come(s.server["sasl"], right, s.login("scram-sha-512", stack.Password), mqtts, right, right)
	s.startAll("ingest", "writer", "replayer")
	missed := []string{"one", "\x00\xff\xfe", "three"}
	e2etest.Publish(t, s.broker, "t/1", missed...)
	s.awaitCommitted("history")
	device := e2etest.Subscribe(t, s.broker, "device-1", "t/1")
	e2etest.Send(t, device, "offline/fetch/device-1", "t/1")
	got := e2etest.Receive(t, device, len(missed))
	if diff := cmp.Diff(missed, e2etest.Payloads(got)); diff != "" {
		t.Errorf("replay (-want +got):\n%s", diff)
	}
	if err := e2etest.Replays(got); err != nil {
		t.Error(err)
	}
}

// refused runs a check that must fail, and say what to do about each server that has a want, and no password.
func (s *secured) refused(what, kafka, cassandra, mqtt string) {
	s.t.Helper()
	code, out := s.restante("check", "-c", s.config("check"))
	if code != 1 {
		s.t.Errorf("%s: check: exit code %d, want 1", what, code)
	}
	for server, want := range map[string]string{"kafka ": kafka, "sink history": cassandra, "mqtt ": mqtt} {
		failed := ""
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "FAILED  "+server) {
				failed += line
			}
		}
		if (failed == "") != (want == "") || !strings.Contains(failed, want) {
			s.t.Errorf("%s: %s: %q, want %q in it", what, server, failed, want)
		}
	}
	if strings.Contains(out, stack.Password) || strings.Contains(out, "wrong") {
		s.t.Errorf("%s: a password is in %s", what, out)
	}
}
