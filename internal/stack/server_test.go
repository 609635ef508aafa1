package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/internal/stack/ports"
)

// endAndStart ends a server twice, at once and in its own way, and starts it again each time.
func endAndStart(t *testing.T, s *Server) {
	t.Helper()
	address := s.Address()
	begun := time.Now()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("started again after a kill in %v", time.Since(begun))
	begun = time.Now()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("restarted in %v", time.Since(begun))
	if s.Address() != address {
		t.Errorf("it moved from %s to %s", address, s.Address())
	}
}

func startOwn(t *testing.T, kind Kind) *Server {
	t.Helper()
	begun := time.Now()
	s := Own(t, kind)
	t.Logf("started in %v", time.Since(begun))
	return s
}

func TestKafkaKeepsWhatItAcknowledged(t *testing.T) {
	s := startOwn(t, Kafka)
	topic := Unique(t)
	client := &kafka.Client{Addr: kafka.TCP(s.Address()), Transport: &kafka.Transport{}}
	defer client.Transport.(*kafka.Transport).CloseIdleConnections()
	made, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}}})
	if err != nil || made.Errors[topic] != nil {
		t.Fatal(err, made.Errors)
	}
	askLeader(t, s.Address(), topic, func(conn *kafka.Conn) error {
		_, err := conn.WriteMessages(kafka.Message{Value: []byte("kept")})
		return err
	})

	endAndStart(t, s)

	var got kafka.Message
	askLeader(t, s.Address(), topic, func(conn *kafka.Conn) (err error) {
		got, err = conn.ReadMessage(1000)
		return err
	})
	if string(got.Value) != "kept" {
		t.Fatalf("got %q", got.Value)
	}
}

// askLeader asks the leader of the topic's partition until it answers: a while after the metadata name it, it may still say that it is none.
func askLeader(t *testing.T, address, topic string, ask func(*kafka.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		conn, err := kafka.DialLeader(ctx, "tcp", address, topic, 0)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			err = ask(conn)
			_ = conn.Close()
		}
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestCassandraKeepsWhatItAcknowledged(t *testing.T) {
	s := startOwn(t, Cassandra)
	keyspace := Unique(t)
	query := func(statement string) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		c, err := cqlLogin(ctx, s.Address(), User, Password)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		result, err := c.query(statement)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	query("CREATE KEYSPACE " + keyspace + " WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
	query("CREATE TABLE " + keyspace + ".t (k text PRIMARY KEY, v text)")
	query("INSERT INTO " + keyspace + ".t (k, v) VALUES ('a', 'kept')")

	endAndStart(t, s)

	if got := query("SELECT v FROM " + keyspace + ".t WHERE k = 'a'"); !bytes.HasSuffix(got, []byte("\x00\x00\x00\x01\x00\x00\x00\x04kept")) {
		t.Errorf("got %q, want one row with %q", got, "kept")
	}
	if _, err := cqlLogin(t.Context(), s.Address(), User, "wrong"); err == nil {
		t.Error("logged in with a wrong password")
	}
	c, err := cqlLogin(t.Context(), s.Address(), User, Password)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if refused, ok := errors.AsType[*cqlError](func() error { _, err := c.query("SELEC"); return err }()); !ok || refused.message == "" {
		t.Error("a wrong statement gives no error of the server")
	}
}

func TestDynamoDBKeepsWhatItAcknowledged(t *testing.T) {
	s := startOwn(t, DynamoDB)
	table := Unique(t)
	createTable(t, s.Address(), table)
	call(t, s.Address(), "PutItem", fmt.Sprintf(`{"TableName":%q,"Item":{"k":{"S":"a"},"v":{"S":"kept"}}}`, table))

	endAndStart(t, s)

	got := call(t, s.Address(), "GetItem", fmt.Sprintf(`{"TableName":%q,"Key":{"k":{"S":"a"}}}`, table))
	if !strings.Contains(got, `"v":{"S":"kept"}`) {
		t.Errorf("got %s", got)
	}
}

func TestAPausedServerIsSilentUntilItIsResumed(t *testing.T) {
	s := Own(t, DynamoDB)
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := Ping(ctx, DynamoDB, s.Address()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("paused: got %v, want no answer", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := Ping(t.Context(), DynamoDB, s.Address()); err != nil {
		t.Error(err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := s.Stop(t.Context()); err != nil || time.Since(begun) > stopLimit/2 {
		t.Errorf("stop a paused server: %v after %v", err, time.Since(begun))
	}
}

func TestAClusterOfKafkaOutlivesItsLeader(t *testing.T) {
	if os.Getenv("RESTANTE_OUTAGES") == "" && os.Getenv("RESTANTE_SOAK") == "" {
		t.Skip("starts three nodes and kills one: make outages runs it")
	}
	begun := time.Now()
	c := OwnKafka(t, 3)
	t.Logf("three nodes started in %v", time.Since(begun))
	topic := Unique(t)
	transport := &kafka.Transport{MetadataTTL: 200 * time.Millisecond}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(strings.Split(c.Addresses(), ",")...), Transport: transport}
	made, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: -1}}})
	if err != nil || made.Errors[topic] != nil {
		t.Fatal(err, made.Errors)
	}
	var at string
	askLeader(t, c[0].Address(), topic, func(conn *kafka.Conn) error {
		at = conn.RemoteAddr().String()
		_, err := conn.WriteMessages(kafka.Message{Value: []byte("before")})
		return err
	})
	leader := c.At(at)
	if leader == nil {
		t.Fatalf("no node has the leader's address %s: %s", at, c.Addresses())
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	other := c[0]
	if other == leader {
		other = c[1]
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if err = writeAndRead(t, other.Address(), topic); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	begun = time.Now()
	if err := leader.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("the killed node is back after %v", time.Since(begun))
}

// writeAndRead writes a second message and reads both.
func writeAndRead(t *testing.T, address, topic string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := kafka.DialLeader(ctx, "tcp", address, topic, 0)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err := conn.SetRequiredAcks(-1); err != nil {
		return err
	}
	if _, err := conn.WriteMessages(kafka.Message{Value: []byte("after")}); err != nil {
		return err
	}
	got, err := conn.ReadMessage(1000)
	if err != nil {
		return err
	}
	if diff := cmp.Diff("before", string(got.Value)); diff != "" {
		t.Errorf("first message (-want +got):\n%s", diff)
	}
	return nil
}

func TestATakenPortIsReplaced(t *testing.T) {
	in, err := prepare(t.Context(), DynamoDB)
	if err != nil {
		giveUp(t, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	calls := 0
	servers, err := startNodes(t.Context(), in, startPlan{dir: t.TempDir(), nodes: 1, take: func(n int) ([]ports.Port, error) {
		if calls++; calls == 1 {
			held, err := ports.Take(n)
			if err == nil {
				held[0].Number = l.Addr().(*net.TCPAddr).Port
			}
			return held, err
		}
		return ports.Take(n)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := servers[0].Close(); err != nil {
			t.Error(err)
		}
	}()
	if calls != 2 || servers[0].Address() == "http://"+l.Addr().String() {
		t.Errorf("ports were taken %d times, want 2; it serves on %s", calls, servers[0].Address())
	}
}

func TestEachKindSaysThatItsPortIsTaken(t *testing.T) {
	for _, kind := range []Kind{Kafka, Cassandra} {
		t.Run(kind.String(), func(t *testing.T) {
			in, err := prepare(t.Context(), kind)
			if err != nil {
				giveUp(t, err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			servers, err := newNodes(in, startPlan{dir: t.TempDir(), nodes: 1, take: func(n int) ([]ports.Port, error) {
				held, err := ports.Take(n)
				if err == nil {
					held[0].Number = l.Addr().(*net.TCPAddr).Port
				}
				return held, err
			}}, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = servers[0].Close() }()
			if err := servers[0].Start(t.Context()); err == nil || !portWasTaken(servers) {
				t.Errorf("got %v, want the log to name the taken port", err)
			}
		})
	}
}

func TestAnErrorShowsTheEndOfTheLog(t *testing.T) {
	in, err := prepare(t.Context(), DynamoDB)
	if err != nil {
		giveUp(t, err)
	}
	_, err = startNodes(t.Context(), in, startPlan{dir: t.TempDir(), nodes: 1, java: []string{"-XX:+NoSuchFlagOfJava"}})
	if err == nil || !strings.Contains(err.Error(), "Unrecognized VM option 'NoSuchFlagOfJava'") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("a start that fails says %v", err)
	}

	servers, err := Start(t.Context(), Config{Kind: DynamoDB, Dir: t.TempDir(), Fast: true})
	if err != nil {
		t.Fatal(err)
	}
	s := servers[0]
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.process.exited
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "ended by itself (signal: killed)") || !strings.Contains(err.Error(), "Port:") {
		t.Errorf("a server that ended by itself says %v", err)
	}
}

func TestWhatIsNotThereIsRefused(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		config Config
		want   string
	}{
		"no kind":           {Config{}, "there is no such kind"},
		"several Cassandra": {Config{Kind: Cassandra, Nodes: 3}, "only kafka has several"},
	} {
		if _, err := Start(t.Context(), c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", sentence, err, c.want)
		}
	}
}
