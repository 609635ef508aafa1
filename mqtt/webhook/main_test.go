package webhook_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/mqtt/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = sourcetest.Patience

// server is one that runs, with all that a test watches.
type server struct {
	*webhook.Server
	t      testing.TB
	tally  *sourcetest.Tally
	client *http.Client
	scheme string
	stop   func() // asks it to end
}

const path = "/events"

func own(c event.ClientID) bool { return strings.HasPrefix(string(c), "restante-") }

// open makes a server that does not run.
func open(t testing.TB, cfg webhook.Config) *server {
	t.Helper()
	s := &server{t: t, tally: &sourcetest.Tally{}, scheme: "http"}
	cfg.Listen, cfg.Source, cfg.Path, cfg.Own = "127.0.0.1:0", "restante/hook", path, own
	cfg.Minter = &event.Minter{Node: 3, Now: func() time.Time { return captured }}
	cfg.Count, cfg.Log = s.tally.Count, slog.New(slog.NewJSONHandler(s.tally, nil))
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
func serve(t testing.TB, cfg webhook.Config, j *sourcetest.Journal) *server {
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
	go func() { ended <- s.Run(ctx, j.Accept) }() // the cleanup waits
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
