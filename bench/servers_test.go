package bench

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/internal/stack"
)

// brokersOf are the brokers of the real Kafka.
func brokersOf(b *testing.B) []string {
	b.Helper()
	return strings.Split(stack.Shared(b, stack.Kafka), ",")
}

// fromEnv is the number in an environment variable, or usual where that is empty.
func fromEnv(b *testing.B, name string, usual int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s=%q is no number above 0", name, text)
	}
	return n
}

// What the sinks are measured with.
const (
	sinkTopics  = 20
	sinkPayload = 300 // bytes
)

func sinkTopicNames() []string {
	names := make([]string, sinkTopics)
	for i := range names {
		names[i] = fmt.Sprintf("plant/%d/line/%d", i%4, i)
	}
	return names
}

// messagesFor are publishes of the last minute, dealt out to 20 topics in turn.
func messagesFor(b *testing.B, n int) []event.Event {
	b.Helper()
	topics := make([]event.Topic, sinkTopics)
	for i, name := range sinkTopicNames() {
		topics[i] = eventtest.Topic(b, name)
	}
	const span = time.Minute
	begin := time.Now().Add(-span)
	payload := bytes.Repeat([]byte{'.'}, sinkPayload)
	events := make([]event.Event, n)
	for i := range events {
		at := begin.Add(span * time.Duration(i) / time.Duration(n))
		events[i] = event.Published{
			Head: event.Head{
				ID:     event.IDOf(at.UnixMicro(), 0xF44200000901, uint16(i)),
				Source: "restante/embedded/bench", At: at.Truncate(time.Millisecond),
			},
			Topic: topics[i%sinkTopics], Sender: "device-4711", QoS: 1, Payload: payload,
		}
	}
	return events
}

// newBacklog puts events into a topic of their own on the real Kafka. The caller closes its client.
func newBacklog(b *testing.B, events []event.Event) *backlog {
	b.Helper()
	brokers, topic := brokersOf(b), stack.Unique(b)
	k := &backlog{client: openKafka(b, brokers, topic), brokers: brokers, topic: topic}
	makeTopic(b, k.client, topic)
	k.append(b, events)
	return k
}

// quoted are the texts as the elements of a list in YAML.
func quoted(texts []string) string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = strconv.Quote(t)
	}
	return strings.Join(out, ", ")
}

// awaitReady waits until an admin server says that its process is ready.
func awaitReady(b *testing.B, addr string) {
	b.Helper()
	said := "nothing"
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+addr+"/readyz", nil)
		if err != nil {
			b.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			continue // it does not listen yet
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close() // it is read
		if err == nil && res.StatusCode == http.StatusOK {
			return
		}
		said = string(body)
	}
	b.Fatalf("the process with the admin server on %s is not ready; it says %s", addr, said)
}
