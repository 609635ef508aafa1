package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/mqtt/webhook"
	"github.com/restante/restante/pipeline"
)

type judge = func(context.Context, int, event.Event) (pipeline.Receipt, error)

func counted(t *testing.T, s *server, want map[mqtt.Counter]int) {
	t.Helper()
	if diff := cmp.Diff(want, s.tally.Counts()); diff != "" {
		t.Errorf("counts differ (-want +got):\n%s", diff)
	}
}

func TestNothingIsAnsweredBeforeItIsDurable(t *testing.T) {
	t.Parallel()
	first, second := sourcetest.Durable(nil), sourcetest.Held()
	n := 0
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) {
		if n++; n == 1 {
			return first, nil
		}
		return second, nil
	}}
	s := serve(t, webhook.Config{Budget: patience}, j)
	answered := make(chan reply, 1)
	go func() { answered <- s.post("[" + publish(someID, "t/1") + "," + publish(someID, "t/2") + "]") }() // ends with the answer
	sourcetest.Eventually(t, "both are taken", func() bool { return len(j.Events()) == 2 })
	select {
	case r := <-answered:
		t.Fatalf("answered %d while an event was not durable", r.status)
	case <-time.After(50 * time.Millisecond):
	}
	second.Complete()
	if r := <-answered; r.status != http.StatusOK {
		t.Errorf("answered %d %s", r.status, r.body)
	}
	counted(t, s, map[mqtt.Counter]int{})
}

func TestWhatIsNotDurableInTimeIsAnsweredWith503(t *testing.T) {
	t.Parallel()
	for name, j := range map[string]judge{
		"the log is slow": func(context.Context, int, event.Event) (pipeline.Receipt, error) { return sourcetest.Held(), nil },
		"the log failed": func(context.Context, int, event.Event) (pipeline.Receipt, error) {
			return sourcetest.Durable(errors.New("gone")), nil
		},
		"ingest has ended": func(context.Context, int, event.Event) (pipeline.Receipt, error) {
			return nil, errors.New("ingest has ended")
		},
		"too much is waiting": func(ctx context.Context, _ int, _ event.Event) (pipeline.Receipt, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for format, want := range map[webhook.Format]mqtt.Counter{webhook.EMQXRule: mqtt.CountUnavailable, webhook.VerneMQ: mqtt.CountGap} {
				s := serve(t, webhook.Config{Format: format, Budget: 30 * time.Millisecond}, &sourcetest.Journal{Judge: j})
				body := publish(someID, "t/1")
				if format == webhook.VerneMQ {
					body = `{"client_id":"c","topic":"t/1","qos":1,"payload":""}`
				}
				for range 3 {
					r := s.post(body, "vernemq-hook", "on_publish")
					if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" {
						t.Errorf("answered %d %v", r.status, r.header)
					}
				}
				counted(t, s, map[mqtt.Counter]int{want: 3})
				if n := strings.Count(s.tally.Log(), "not durable in time"); n != 1 {
					t.Errorf("%d lines, want 1 a minute:\n%s", n, s.tally.Log())
				}
			}
		})
	}
}

// The good ones of a batch must not be lost with the bad: a broker does not repeat what is answered with 400.
func TestBadEventOfABatchIsNamedAndTheOthersAreTaken(t *testing.T) {
	t.Parallel()
	j := &sourcetest.Journal{}
	s := serve(t, webhook.Config{}, j)
	r := s.post("[" + publish(someID, "t/1") + `,{"event":"message.publish","topic":"t/+","payload":""},7,` + publish(someID, "t/2") + "]")
	if r.status != http.StatusBadRequest || !strings.Contains(r.body, `"at":1,"reason":"refused_topic"`) || !strings.Contains(r.body, `"at":2,"reason":"refused_json"`) {
		t.Errorf("answered %d %s", r.status, r.body)
	}
	if n := len(j.Events()); n != 2 {
		t.Errorf("took %d, want 2", n)
	}
	counted(t, s, map[mqtt.Counter]int{mqtt.CountRefusedTopic: 1, mqtt.CountRefusedJSON: 1})
}

func TestRequestsThatCannotBeAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	const limit = 4000
	for sentence, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		want               mqtt.Counter
	}{
		"another path":         {http.MethodPost, "/", publish(someID, "t"), nil, http.StatusNotFound, mqtt.CountRefusedRequest},
		"a GET":                {http.MethodGet, path, "", nil, http.StatusMethodNotAllowed, mqtt.CountRefusedRequest},
		"a compressed body":    {http.MethodPost, path, "x", []string{"Content-Encoding", "gzip"}, http.StatusUnsupportedMediaType, mqtt.CountRefusedRequest},
		"a body over the size": {http.MethodPost, path, strings.Repeat(" ", limit+1), nil, http.StatusRequestEntityTooLarge, mqtt.CountRefusedSize},
		"no body":              {http.MethodPost, path, "", nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
		"no JSON":              {http.MethodPost, path, publish(someID, "t")[1:], nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
		"two objects":          {http.MethodPost, path, "{}{}", nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
		"no UTF-8":             {http.MethodPost, path, `{"event":"` + "\xff" + `"}`, nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
		"an empty array":       {http.MethodPost, path, " []", nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
		"half an array":        {http.MethodPost, path, "[{}", nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
		"null":                 {http.MethodPost, path, "null", nil, http.StatusBadRequest, mqtt.CountRefusedJSON},
	} {
		j := &sourcetest.Journal{}
		s := serve(t, webhook.Config{MaxBody: limit}, j)
		if r := s.send(c.method, c.path, c.body, c.headers...); r.status != c.status {
			t.Errorf("%s: answered %d %s, want %d", sentence, r.status, r.body, c.status)
		}
		counted(t, s, map[mqtt.Counter]int{c.want: 1})
		if n := len(j.Events()); n > 0 {
			t.Errorf("%s: took %d events", sentence, n)
		}
	}
}

// A body whose length is not told is counted while it comes.
func TestChunkedBodyOverTheSizeIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, webhook.Config{MaxBody: 1000}, &sourcetest.Journal{})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Addr().String()+path, io.MultiReader(strings.NewReader(strings.Repeat(" ", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close() // only its status is asked
	if answer.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("answered %d", answer.StatusCode)
	}
	counted(t, s, map[mqtt.Counter]int{mqtt.CountRefusedSize: 1})
}

const secret = "a secret of the tests"

func sign(key, body string) string {
	h := hmac.New(sha256.New, []byte(key))
	h.Write([]byte(body))
	return hex.EncodeToString(h.Sum(nil))
}

func TestOnlyWhoKnowsTheSecretIsHeard(t *testing.T) {
	t.Parallel()
	body := publish(someID, "t/1")
	for sentence, c := range map[string]struct {
		cfg     webhook.Config
		headers []string
		status  int
	}{
		"the token":                {webhook.Config{Token: secret}, []string{"Authorization", "Bearer " + secret}, 200},
		"no token":                 {webhook.Config{Token: secret}, nil, 401},
		"another token":            {webhook.Config{Token: secret}, []string{"Authorization", "Bearer " + secret + "x"}, 401},
		"half the token":           {webhook.Config{Token: secret}, []string{"Authorization", "Bearer " + secret[:8]}, 401},
		"the token as a password":  {webhook.Config{Token: secret}, []string{"Authorization", "Basic " + secret}, 401},
		"the signature":            {webhook.Config{HMACKey: secret}, []string{"X-Restante-Signature", sign(secret, body)}, 200},
		"with its kind":            {webhook.Config{HMACKey: secret, HMACHeader: "X-Hub-Signature-256"}, []string{"X-Hub-Signature-256", "sha256=" + sign(secret, body)}, 200},
		"no signature":             {webhook.Config{HMACKey: secret}, nil, 401},
		"of another key":           {webhook.Config{HMACKey: secret}, []string{"X-Restante-Signature", sign("another", body)}, 401},
		"of another body":          {webhook.Config{HMACKey: secret}, []string{"X-Restante-Signature", sign(secret, body+" ")}, 401},
		"half a signature":         {webhook.Config{HMACKey: secret}, []string{"X-Restante-Signature", sign(secret, body)[:32]}, 401},
		"both where one is wrong":  {webhook.Config{Token: secret, HMACKey: secret}, []string{"Authorization", "Bearer " + secret}, 401},
		"both where both are well": {webhook.Config{Token: secret, HMACKey: secret}, []string{"Authorization", "bearer " + secret, "X-Restante-Signature", sign(secret, body)}, 200},
	} {
		j := &sourcetest.Journal{}
		s := serve(t, c.cfg, j)
		if r := s.post(body, c.headers...); r.status != c.status {
			t.Errorf("%s: answered %d, want %d", sentence, r.status, c.status)
		}
		want, events := map[mqtt.Counter]int{}, 1
		if c.status == http.StatusUnauthorized {
			want[mqtt.CountRefusedAuth], events = 1, 0
		}
		counted(t, s, want)
		if n := len(j.Events()); n != events {
			t.Errorf("%s: took %d events", sentence, n)
		}
		if strings.Contains(s.tally.Log(), secret) {
			t.Errorf("%s: the secret was logged", sentence)
		}
	}
}

func TestConfigurationsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	good := webhook.Config{Listen: "127.0.0.1:0", Path: "/", Format: webhook.EMQXRule, Source: "s", Minter: &event.Minter{Now: time.Now}}
	for sentence, change := range map[string]func(*webhook.Config){
		"no address":      func(c *webhook.Config) { c.Listen = "" },
		"a bad address":   func(c *webhook.Config) { c.Listen = "nowhere:x" },
		"no path":         func(c *webhook.Config) { c.Path = "" },
		"another format":  func(c *webhook.Config) { c.Format = "xml" },
		"no source":       func(c *webhook.Config) { c.Source = "" },
		"no minter":       func(c *webhook.Config) { c.Minter = nil },
		"a short token":   func(c *webhook.Config) { c.Token = "short" },
		"a short key":     func(c *webhook.Config) { c.HMACKey = "short" },
		"negative budget": func(c *webhook.Config) { c.Budget = -1 },
	} {
		c := good
		change(&c)
		if s, err := webhook.Open(c); err == nil {
			t.Errorf("%s: opened at %v", sentence, s.Addr())
		}
	}
}

func TestBrokerThatHangsUpLosesNothing(t *testing.T) {
	t.Parallel()
	entered, hungUp, kept := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	j := &sourcetest.Journal{Judge: func(ctx context.Context, _ int, _ event.Event) (pipeline.Receipt, error) {
		close(entered)
		<-hungUp
		select {
		case <-ctx.Done():
			kept <- context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
			kept <- nil
		}
		return sourcetest.Durable(nil), nil
	}}
	s := serve(t, webhook.Config{Budget: patience}, j)
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body := publish(someID, "t/1")
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		t.Fatal(err)
	}
	<-entered
	_ = conn.Close() // that is the test
	close(hungUp)
	if err := <-kept; err != nil {
		t.Errorf("the event ends with its request: %v", err)
	}
}

func TestRequestsOverTheLimitWait(t *testing.T) {
	t.Parallel()
	r := sourcetest.Held()
	j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
	s := serve(t, webhook.Config{MaxCalls: 2, Budget: patience}, j)
	var wg sync.WaitGroup
	const calls = 5
	for range calls {
		wg.Go(func() {
			if r := s.post(publish(someID, "t/1")); r.status != http.StatusOK {
				t.Errorf("answered %d %s", r.status, r.body)
			}
		})
	}
	sourcetest.Eventually(t, "two are taken", func() bool { return len(j.Events()) == 2 })
	time.Sleep(30 * time.Millisecond)
	if n := len(j.Events()); n != 2 {
		t.Errorf("%d are under way, want 2", n)
	}
	r.Complete()
	wg.Wait()
	if n := len(j.Events()); n != calls {
		t.Errorf("took %d, want %d", n, calls)
	}
}

func TestStopAnswersWhatIsUnderWayWithinItsDrain(t *testing.T) {
	t.Parallel()
	for name, comes := range map[string]bool{"it becomes durable": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := sourcetest.Held()
			j := &sourcetest.Journal{Judge: func(context.Context, int, event.Event) (pipeline.Receipt, error) { return r, nil }}
			drain := patience
			if !comes {
				drain = 30 * time.Millisecond
			}
			s := serve(t, webhook.Config{Budget: 2 * patience, Drain: drain}, j)
			answered := make(chan reply, 1)
			go func() { answered <- s.post(publish(someID, "t/1")) }() // ends with the answer
			sourcetest.Eventually(t, "the event is taken", func() bool { return len(j.Events()) == 1 })
			s.stop()
			sourcetest.Eventually(t, "nobody listens any more", func() bool {
				c, err := net.Dial("tcp", s.Addr().String())
				if err == nil {
					_ = c.Close()
				}
				return err != nil
			})
			if comes {
				r.Complete()
			}
			if got := <-answered; (got.status == http.StatusOK) != comes {
				t.Errorf("answered %d %s", got.status, got.body)
			}
		})
	}
}

func TestPoisonIsCountedAndAnswered(t *testing.T) {
	t.Parallel()
	poison := fault.Poison(errors.New("a record of 2000000 bytes is over the limit"))
	for name, j := range map[string]judge{
		"seen at once": func(context.Context, int, event.Event) (pipeline.Receipt, error) { return nil, poison },
		"seen later": func(context.Context, int, event.Event) (pipeline.Receipt, error) {
			return sourcetest.Durable(poison), nil
		},
		"not wanted": func(context.Context, int, event.Event) (pipeline.Receipt, error) { return nil, nil }, //nolint:nilnil // Accept's contract
	} {
		s := serve(t, webhook.Config{}, &sourcetest.Journal{Judge: j})
		if r := s.post(publish(someID, "t/1")); r.status != http.StatusOK {
			t.Errorf("%s: answered %d", name, r.status)
		}
		want := map[mqtt.Counter]int{mqtt.CountRefusedPoison: 1}
		if name == "not wanted" {
			want = map[mqtt.Counter]int{}
		}
		counted(t, s, want)
	}
}

// A broker that posts publishes posts the clients' answers too.
func TestAnswerOfAClientIsAnAck(t *testing.T) {
	t.Parallel()
	topic, err := mqtt.ParseFetchTopic(mqtt.DefaultAnswerTopic)
	if err != nil {
		t.Fatal(err)
	}
	key, err := mqtt.NewSecret([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	a := mqtt.Answers{Topic: topic, Secret: key}
	id := event.IDOf(1795376856413106, 9, 1)
	j := &sourcetest.Journal{}
	s := serve(t, webhook.Config{Format: webhook.VerneMQ, Answers: a}, j)
	token := string(a.Token("dev", eventtest.Topic(t, "t/1"), id))
	body := `{"client_id":"dev","topic":"offline/ack/dev","qos":1,"payload":"","properties":{"p_correlation_data":%q}}`
	for _, data := range []string{token, token + "x"} {
		if r := s.post(fmt.Sprintf(body, data), "vernemq-hook", "on_publish_m5"); r.status != http.StatusOK {
			t.Errorf("answered %d %s", r.status, r.body)
		}
	}
	got := j.Events()
	if len(got) != 1 {
		t.Fatalf("took %v, want one ack", got)
	}
	if ack, ok := got[0].(event.Acked); !ok || ack.Message != id || ack.Client != "dev" || !ack.Replayed {
		t.Errorf("took %+v", got[0])
	}
	counted(t, s, map[mqtt.Counter]int{mqtt.CountRefusedAnswer: 1})
}
