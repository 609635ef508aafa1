package stack

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/segmentio/kafka-go"
)

var kafkaRecipe = recipe{
	ports:   4, // clients and other nodes, controllers; clients by TLS, and those that log in by SASL over it
	archive: true,
	flags:   []string{"-Xms192m", "-Xmx192m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"},
	prepare: prepareKafka,
	main: func(_ *install, s site) []string {
		return []string{"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "kafka.Kafka", filepath.Join(s.dir, "server.properties")}
	},
	address: func(s site) string { return loopback(s.ports[0]) },
	ping:    pingKafka,
}

// formatted is a directory in the cache that Kafka's own tool formatted: to copy it saves a start of Java for each node.
const formatted = "formatted"

// format makes that directory unless it is there.
func (in *install) format(ctx context.Context) error {
	done := filepath.Join(in.dir, formatted)
	if _, err := os.Stat(done); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	work, err := os.MkdirTemp(in.dir, "format-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	data := filepath.Join(work, "data")
	// The ports are not bound, and stand nowhere in what is formatted.
	s := site{dir: work, ports: []int{9092, 9093}, nodes: [][]int{{9092, 9093}}}
	if err := os.WriteFile(filepath.Join(work, "server.properties"), []byte(kafkaProperties(s)), 0o600); err != nil {
		return err
	}
	argv := slices.Concat(in.java, []string{
		"-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", in.classPath, "kafka.tools.StorageTool", "format",
		"-t", kafkaID(), "-c", filepath.Join(work, "server.properties"),
	})
	if err := run(ctx, argv, work, filepath.Join(work, "log")); err != nil {
		return err
	}
	return os.Rename(data, done)
}

// kafkaID is a random id in Kafka's spelling.
func kafkaID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	id[0] &= 0x7f        // a leading "-" would read as an option
	return base64.RawURLEncoding.EncodeToString(id)
}

func kafkaProperties(s site) string {
	var voters []string
	for i, ports := range s.nodes {
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, loopback(ports[1])))
	}
	replicas := min(len(s.nodes), 3)
	// A node that dies is noticed quickly. One that is shared does not die, and must not be taken for dead on a busy machine.
	session := "3000"
	if s.fast {
		session = "30000"
	}
	listeners := []string{"PLAINTEXT://" + loopback(s.ports[0])}
	var secure []string
	if s.tls != nil {
		listeners = append(listeners, "SSL://"+loopback(s.ports[2]), "SASL_SSL://"+loopback(s.ports[3]))
		secure = kafkaSecurity(s.tls)
	}
	set := []string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", s.node+1),
		"controller.quorum.voters=" + strings.Join(voters, ","),
		fmt.Sprintf("listeners=%s,CONTROLLER://%s", strings.Join(listeners, ","), loopback(s.ports[1])),
		"advertised.listeners=" + strings.Join(listeners, ","),
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name=PLAINTEXT",
		"log.dirs=" + filepath.Join(s.dir, "data"),
		"auto.create.topics.enable=false",
		// As in production: what is acknowledged outlives a node.
		fmt.Sprintf("default.replication.factor=%d", replicas),
		fmt.Sprintf("min.insync.replicas=%d", replicas/2+1),
		"unclean.leader.election.enable=false",
		fmt.Sprintf("offsets.topic.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.min.isr=%d", replicas/2+1),
		fmt.Sprintf("share.coordinator.state.topic.replication.factor=%d", replicas),
		fmt.Sprintf("share.coordinator.state.topic.min.isr=%d", replicas/2+1),
		// Small and quick: 50 partitions of offsets cost seconds, a first join waits 3 s, a restarted node 9 s.
		"offsets.topic.num.partitions=4",
		"transaction.state.log.num.partitions=4",
		"group.initial.rebalance.delay.ms=0",
		"log.cleaner.dedupe.buffer.size=4194304",
		"broker.session.timeout.ms=" + session,
		"broker.heartbeat.interval.ms=500",
		"replica.lag.time.max.ms=3000",
	}
	return strings.Join(append(set, secure...), "\n") + "\n"
}

// kafkaSecurity lets clients in who show a certificate, or log in as [User]: by PLAIN, or by SCRAM once a test has given the password.
func kafkaSecurity(t *TLS) []string {
	const modules = "org.apache.kafka.common.security."
	set := []string{
		"ssl.keystore.type=PEM", "ssl.keystore.location=" + t.Identity.Bundle,
		"ssl.truststore.type=PEM", "ssl.truststore.location=" + t.Clients.File,
		"listener.name.ssl.ssl.client.auth=required", "listener.name.sasl_ssl.ssl.client.auth=none",
		"listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"listener.name.sasl_ssl.plain.sasl.jaas.config=" + modules + `plain.PlainLoginModule required user_` + User + `="` + Password + `";`,
	}
	for _, hash := range []string{"256", "512"} {
		set = append(set, "listener.name.sasl_ssl.scram-sha-"+hash+".sasl.jaas.config="+modules+"scram.ScramLoginModule required;")
	}
	return set
}

func prepareKafka(in *install, s site) error {
	data := filepath.Join(s.dir, "data")
	if err := os.WriteFile(filepath.Join(s.dir, "server.properties"), []byte(kafkaProperties(s)), 0o600); err != nil {
		return err
	}
	from := filepath.Join(in.dir, formatted)
	if err := os.CopyFS(data, os.DirFS(from)); err != nil {
		return err
	}
	meta := filepath.Join(data, "meta.properties")
	text, err := os.ReadFile(meta) //nolint:gosec // a path of ours
	if err != nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		switch key, _, _ := strings.Cut(line, "="); key {
		case "node.id":
			line = fmt.Sprintf("node.id=%d\n", s.node+1)
		case "directory.id":
			line = "directory.id=" + kafkaID() + "\n"
		}
		lines = append(lines, line)
	}
	return os.WriteFile(meta, []byte(strings.Join(lines, "")), 0o600)
}

// pingKafka asks each address for the brokers of its cluster, and wants so many.
func pingKafka(ctx context.Context, addresses string, nodes int) error {
	for address := range strings.SplitSeq(addresses, ",") {
		if err := pingBroker(ctx, strings.TrimSpace(address), nodes); err != nil {
			return err
		}
	}
	return nil
}

func pingBroker(ctx context.Context, address string, nodes int) error {
	conn, err := kafka.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	brokers, err := conn.Brokers()
	if err != nil {
		return fmt.Errorf("ask %s for its brokers: %w", address, err)
	}
	if len(brokers) < nodes {
		return fmt.Errorf("%s knows %d brokers of %d", address, len(brokers), nodes)
	}
	return nil
}
