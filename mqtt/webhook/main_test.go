package webhook_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/webhook"
	"github.com/restante/restante/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// receipt is a receipt that a test completes.
type receipt struct {
	done chan struct{}
	err  error
}

func held() *receipt { return &receipt{done: make(chan struct{})} }

func durable(err error) *receipt {
	r := &receipt{done: make(chan struct{}), err: err}
	close(r.done)
	return r
}

func (r *receipt) Done() <-chan struct{} { return r.done }
func (r *receipt) Err() error            { return r.err }

// journal stands for the log: it takes events, and judges each as a test wishes; nil = durable at once.
type journal struct {
	judge func(ctx context.Context, e event.Event) (pipeline.Receipt, error)

	mu     sync.Mutex
	events []event.Event
}

func (j *journal) accept(ctx context.Context, e event.Event) (pipeline.Receipt, error) {
	var r pipeline.Receipt = durable(nil)
	if j.judge != nil {
		var err error
		if r, err = j.judge(ctx, e); err != nil {
			return nil, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	return r, nil
}

func (j *journal) taken() []event.Event { return j.since(0) }

func (j *journal) since(n int) []event.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events[n:])
}

func (j *journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.events)
}

// tally counts what a server counts and keeps what it logs.
type tally struct {
	mu     sync.Mutex
	counts map[mqtt.Counter]int
	logs   bytes.Buffer
}

func (t *tally) count(c mqtt.Counter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[c]++
}

func (t *tally) all() map[mqtt.Counter]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

func (t *tally) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.logs.Write(p)
}

func (t *tally) log() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.logs.String()
}

// server is one that runs, with all that a test watches.
type server struct {
	*webhook.Server
	t      testing.TB
	tally  *tally
	client *http.Client
	scheme string
	stop   func() // asks it to end
}

const path = "/events"

func own(c event.ClientID) bool { return strings.HasPrefix(string(c), "restante-") }

// open makes a server that does not run.
func open(t testing.TB, cfg webhook.Config) *server {
	t.Helper()
	s := &server{t: t, tally: &tally{counts: map[mqtt.Counter]int{}}, scheme: "http"}
	cfg.Listen, cfg.Source, cfg.Path, cfg.Own = "127.0.0.1:0", "restante/hook", path, own
	cfg.Minter = &event.Minter{Node: 3, Now: func() time.Time { return captured }}
	cfg.Count, cfg.Log = s.tally.count, slog.New(slog.NewJSONHandler(s.tally, nil))
	if cfg.Format == "" {
		cfg.Format = webhook.EMQXRule
	}
	w, err := webhook.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = w
	return s
}

// serve runs a server until the test ends.
func serve(t testing.TB, cfg webhook.Config, j *journal) *server {
	t.Helper()
	s := open(t, cfg)
	transport := &http.Transport{}
	if cfg.TLS != nil {
		s.scheme = "https"
	}
	s.client = &http.Client{Transport: transport, Timeout: patience}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, j.accept) }() // the cleanup waits
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

// with makes the client speak TLS.
func (s *server) with(c *tls.Config) *server {
	t := &http.Transport{TLSClientConfig: c}
	s.t.Cleanup(t.CloseIdleConnections)
	out := *s
	out.client = &http.Client{Transport: t, Timeout: patience}
	return &out
}

// reply is what a request was answered with; status 0 = not at all.
type reply struct {
	status int
	body   string
	header http.Header
}

func (s *server) send(method, to, body string, headers ...string) reply {
	r, err := http.NewRequestWithContext(context.Background(), method, s.scheme+"://"+s.Addr().String()+to, strings.NewReader(body))
	if err != nil {
		return reply{body: err.Error()}
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return reply{body: err.Error()}
	}
	defer func() { _ = answer.Body.Close() }() // it is read
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return reply{body: err.Error()}
	}
	return reply{answer.StatusCode, string(text), answer.Header}
}

func (s *server) post(body string, headers ...string) reply {
	return s.send(http.MethodPost, path, body, headers...)
}

func publish(id, topic string) string {
	return fmt.Sprintf(`{"event":"message.publish","id":%q,"clientid":"pub","topic":%q,"qos":1,"flags":{"retain":true},"payload_b64":"aGk=",`+
		`"publish_received_at":1795376856413,"timestamp":1795376856413,"node":"n1"}`, id, topic)
}

const someID = "000660E2BFC3B3B2F49E000001AD0001"

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
