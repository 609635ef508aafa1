package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
)

// hiveMQMain starts it as its own tests do: a HiveMQ without a security extension lets nobody in, but for an embedded one.
const hiveMQMain = `import com.hivemq.embedded.EmbeddedHiveMQ;
import java.nio.file.Path;

public class Main {
    public static void main(String[] args) throws Exception {
        Path home = Path.of(args[0]);
        EmbeddedHiveMQ broker = EmbeddedHiveMQ.builder().withConfigurationFolder(home.resolve("conf"))
            .withDataFolder(home.resolve("data")).withExtensionsFolder(home.resolve("extensions")).build();
        broker.start().join();
        Thread.sleep(Long.MAX_VALUE);
    }
}
`

const hiveMQConfig = `<?xml version="1.0"?>
<hivemq>
  <listeners><tcp-listener><port>%d</port><bind-address>127.0.0.1</bind-address></tcp-listener></listeners>
  <anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics>
</hivemq>
`

// hiveMQRecipe is HiveMQ's Community Edition: a broker that tells nobody anything but what MQTT 5 says.
var hiveMQRecipe = recipe{
	ports: 1,
	flags: []string{"-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"},
	prepare: func(_ *install, s site) error {
		for _, dir := range []string{"conf", "data", "extensions"} {
			if err := os.Mkdir(filepath.Join(s.dir, dir), 0o750); err != nil {
				return err
			}
		}
		return errors.Join(
			os.WriteFile(filepath.Join(s.dir, "conf", "config.xml"), fmt.Appendf(nil, hiveMQConfig, s.ports[0]), 0o600),
			os.WriteFile(filepath.Join(s.dir, "Main.java"), []byte(hiveMQMain), 0o600),
		)
	},
	main:    func(_ *install, s site) []string { return []string{filepath.Join(s.dir, "Main.java"), s.dir} },
	address: func(s site) string { return loopback(s.ports[0]) },
	ping:    pingMQTT,
}

// pingMQTT connects as MQTT 5 has it, and wants the CONNACK.
func pingMQTT(ctx context.Context, address string, _ int) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := conn.Write([]byte("\x10\x11\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x04ping")); err != nil {
		return err
	}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return err
	}
	if first[0] != 0x20 {
		return fmt.Errorf("%s answers a CONNECT with packet %#x", address, first[0])
	}
	return nil
}
