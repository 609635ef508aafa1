package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

var cassandraRecipe = recipe{
	ports:   2, // clients, other nodes
	archive: true,
	flags:   cassandraFlags(),
	prepare: prepareCassandra,
	main: func(_ *install, s site) []string {
		return []string{
			"-Dcassandra.config=file://" + filepath.Join(s.dir, "cassandra.yaml"),
			"-Dlogback.configurationFile=file://" + filepath.Join(s.dir, "logback.xml"),
			"-Dcassandra.storagedir=" + filepath.Join(s.dir, "data"),
			"-Dcassandra-foreground=yes",
			// One node waits for nobody.
			"-Dcassandra.superuser_setup_delay_ms=0", "-Dcassandra.ring_delay_ms=100", "-Dcassandra.skip_wait_for_gossip_to_settle=0",
			"-Dcassandra.load_ring_state=false", "-Dcassandra.initial_token=0", "-Dcassandra.shutdown_announce_in_ms=0",
			"org.apache.cassandra.service.CassandraDaemon",
		}
	},
	address: func(s site) string { return loopback(s.ports[0]) },
	ping:    pingCassandra,
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func cassandraFlags() []string {
	flags := []string{
		"-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
		"-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote",
		"-Djdk.attach.allowAttachSelf=true", "-Dio.netty.tryReflectionSetAccessible=true",
	}
	// What Cassandra uses of Java's inside: without these it refuses to start.
	for _, exported := range []string{
		"java.base/jdk.internal.misc", "java.base/java.lang.ref", "java.management.rmi/com.sun.jmx.remote.internal.rmi",
		"java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.sql/java.sql", "jdk.unsupported/sun.misc",
	} {
		flags = append(flags, "--add-exports="+exported+"=ALL-UNNAMED")
	}
	for _, opened := range []string{
		"java.lang.module", "jdk.internal.loader", "jdk.internal.ref", "jdk.internal.reflect", "jdk.internal.math",
		"jdk.internal.module", "jdk.internal.util.jar", "sun.nio.ch", "java.io", "java.lang", "java.lang.reflect", "java.util",
	} {
		flags = append(flags, "--add-opens=java.base/"+opened+"=ALL-UNNAMED")
	}
	return append(flags, "--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED")
}

const cassandraYAML = `cluster_name: restante
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "127.0.0.1:%[2]d"
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
native_transport_port: %[1]d
storage_port: %[2]d
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
%[4]s
%[5]s
commitlog_directory: %[3]s/commitlog
data_file_directories: [%[3]s/data]
saved_caches_directory: %[3]s/saved_caches
hints_directory: %[3]s/hints
cdc_raw_directory: %[3]s/cdc_raw
`

// Clients may come without TLS, as our own look whether it serves does; those that use it show a certificate.
const cassandraTLS = `client_encryption_options:
  enabled: true
  optional: true
  require_client_auth: true
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
  keystore: %s
  truststore: %s
`

const cassandraLogback = `<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{HH:mm:ss.SSS} %-5level %logger{20} %msg%n</pattern></encoder>
  </appender>
  <logger name="org.apache.cassandra.db.commitlog" level="INFO"/>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
`

func prepareCassandra(_ *install, s site) error {
	data := filepath.Join(s.dir, "data")
	commitLog := "commitlog_sync: batch"
	if s.fast {
		commitLog = "commitlog_sync: periodic\ncommitlog_sync_period: 10000ms"
	}
	encryption := ""
	if s.tls != nil {
		encryption = fmt.Sprintf(cassandraTLS, s.tls.Identity.Bundle, s.tls.Clients.File)
	}
	yaml := fmt.Sprintf(cassandraYAML, s.ports[0], s.ports[1], data, commitLog, encryption)
	return errors.Join(
		os.Mkdir(data, 0o750),
		os.WriteFile(filepath.Join(s.dir, "cassandra.yaml"), []byte(yaml), 0o600),
		os.WriteFile(filepath.Join(s.dir, "logback.xml"), []byte(cassandraLogback), 0o600),
	)
}

// pingCassandra logs in as User and asks for the version; on a new server it makes that user first.
func pingCassandra(ctx context.Context, address string, _ int) error {
	c, err := cqlLogin(ctx, address, User, Password)
	if refused, ok := errors.AsType[*cqlError](err); ok && refused.code == errBadCredentials {
		if err := makeUser(ctx, address); err != nil {
			return err
		}
		c, err = cqlLogin(ctx, address, User, Password)
	}
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.query("SELECT release_version FROM system.local")
	return err
}

// makeUser logs in by the role that every new server has.
func makeUser(ctx context.Context, address string) error {
	c, err := cqlLogin(ctx, address, "cassandra", "cassandra")
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.query("CREATE ROLE IF NOT EXISTS " + User + " WITH PASSWORD = '" + Password + "' AND SUPERUSER = true AND LOGIN = true")
	return err
}
