package emqxapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/mqtt/emqxapi"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// emqx answers as EMQX does. Clients whose name begins with "gone" are not there, and topics that begin with "bad" are refused.
type emqx struct {
	mu   sync.Mutex
	made []string // "client filter@qos"
	asks int
}

func (e *emqx) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asks++
	say := func(status int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
	if key, secret, ok := r.BasicAuth(); !ok || key != "key" || secret != "secret" {
		say(401, `{"code":"BAD_API_KEY_OR_SECRET","message":"Check api_key/api_secret"}`)
		return
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		say(415, `{"code":"UNSUPPORTED_MEDIA_TYPE"}`)
		return
	}
	switch client, five := strings.CutPrefix(r.URL.Path, "/api/v5/clients/"); {
	case five && strings.HasSuffix(client, "/subscribe"):
		var s struct {
			Topic string
			QoS   int
		}
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			say(400, `{"code":"BAD_REQUEST"}`)
			return
		}
		client = strings.TrimSuffix(client, "/subscribe")
		switch {
		case strings.HasPrefix(client, "gone"):
			say(404, `{"code":"CLIENTID_NOT_FOUND","message":"Client ID not found"}`)
		case strings.HasPrefix(s.Topic, "bad"):
			say(400, `{"code":"INVALID_PARAMETER","message":"…"}`)
		default:
			e.made = append(e.made, fmt.Sprintf("%s %s@%d", client, s.Topic, s.QoS))
			say(200, fmt.Sprintf(`{"node":"emqx@127.0.0.1","clientid":%q,"topic":%q,"qos":%d}`, client, s.Topic, s.QoS))
		}
	case r.URL.Path == "/api/v4/mqtt/subscribe_batch":
		var list []struct {
			Topic, ClientID string
			QoS             int
		}
		if err := json.NewDecoder(r.Body).Decode(&list); err != nil {
			say(400, `{"code":102}`)
			return
		}
		type result struct {
			ClientID string `json:"clientid"`
			Topic    string `json:"topic"`
			Code     int    `json:"code"`
		}
		var out []result
		for _, s := range list {
			code := 0
			switch {
			case strings.HasPrefix(s.Topic, "bad"):
				code = 115
			case strings.HasPrefix(s.ClientID, "gone"):
				code = 112
			default:
				for topic := range strings.SplitSeq(s.Topic, ",") {
					e.made = append(e.made, fmt.Sprintf("%s %s@%d", s.ClientID, topic, s.QoS))
				}
			}
			out = append(out, result{s.ClientID, s.Topic, code})
		}
		data, _ := json.Marshal(out)
		say(200, `{"code":0,"data":`+string(data)+`}`)
	default:
		say(404, `{"code":"API_NOT_EXIST","message":"Request Path Not Found"}`)
	}
}

func open(t *testing.T, url string, version int, change func(*emqxapi.Config)) *emqxapi.Client {
	t.Helper()
	cfg := emqxapi.Config{URL: url, Version: version, Key: "key", Secret: "secret", Timeout: time.Minute, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	c, err := emqxapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func both(t *testing.T, f func(t *testing.T, version int)) {
	t.Helper()
	for _, v := range []int{4, 5} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			t.Parallel()
			f(t, v)
		})
	}
}

func subs(t *testing.T, filters ...string) []sinks.Sub {
	t.Helper()
	var out []sinks.Sub
	for i, f := range filters {
		out = append(out, sinks.Sub{Filter: eventtest.Filter(t, f), QoS: event.QoS(i % 3)})
	}
	return out
}

func TestAClientIsSubscribed(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		e := &emqx{}
		server := httptest.NewServer(e)
		defer server.Close()
		c := open(t, server.URL+"/", version, nil)
		client := event.ClientID("dev/1 %2F#?ü")
		res, err := c.Resubscribe(t.Context(), client, subs(t, "t/1", "$share/g/t/+", "a b/#"))
		if err != nil || res != (pipeline.Resubscribed{}) {
			t.Errorf("%+v, %v", res, err)
		}
		want := []string{string(client) + " t/1@0", string(client) + " $share/g/t/+@1", string(client) + " a b/#@2"}
		if diff := cmp.Diff(want, e.made); diff != "" {
			t.Error(diff)
		}
	})
}

func TestManySubscriptionsAreAllMade(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		e := &emqx{}
		server := httptest.NewServer(e)
		defer server.Close()
		var filters, want []string
		for i := range 250 {
			filters = append(filters, fmt.Sprint("t/", i))
			want = append(want, fmt.Sprintf("c t/%d@%d", i, i%3))
		}
		if _, err := open(t, server.URL, version, nil).Resubscribe(t.Context(), "c", subs(t, filters...)); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, e.made); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWhatCannotBeIsCountedAndTheRestIsMade(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		e := &emqx{}
		server := httptest.NewServer(e)
		defer server.Close()
		c := open(t, server.URL, version, nil)
		res, err := c.Resubscribe(t.Context(), "gone-1", subs(t, "t/1", "t/2"))
		if err != nil || res != (pipeline.Resubscribed{Gone: true}) {
			t.Errorf("a client that has gone: %+v, %v", res, err)
		}
		res, err = c.Resubscribe(t.Context(), "c", subs(t, "t/1", "bad/1", "t/2", "u,v"))
		want, made := pipeline.Resubscribed{Refused: 1}, []string{"c t/1@0", "c t/2@2", "c u,v@0"}
		if version == 4 { // whose API takes u,v for two topics
			want, made = pipeline.Resubscribed{Refused: 2}, made[:2]
		}
		if err != nil || res != want {
			t.Errorf("refused: %+v, %v", res, err)
		}
		if diff := cmp.Diff(made, e.made); diff != "" {
			t.Error(diff)
		}
	})
}

// TestEverythingElseIsTriedAgain: it is an error that says what to look at, and of no class that would end the trying.
func TestEverythingElseIsTriedAgain(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		for name, c := range map[string]struct {
			status int
			body   string
			want   string
		}{
			"no access":              {401, `{"code":"BAD_API_KEY_OR_SECRET"}`, "check delivery.api.key"},
			"forbidden":              {403, `{"code":"API_KEY_NOT_ALLOW"}`, "check delivery.api.key"},
			"no such path":           {404, `{"code":"API_NOT_EXIST"}`, "delivery.api.url"},
			"another server":         {404, `<html>not here</html>`, "delivery.api.url"},
			"another server, glad":   {200, `<html>welcome</html>`, "delivery.api.url"},
			"elsewhere":              {302, ``, "delivery.api.url"},
			"an error of the broker": {500, `{"code":"UNKNOWN_ERROR","message":"timeout"}`, "500"},
			"too much":               {429, ``, "429"},
			"away behind a proxy":    {503, `<html>`, "HTTP 503"},
		} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.status == 302 {
					w.Header().Set("Location", "http://127.0.0.1:1/")
				}
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			}))
			_, err := open(t, server.URL, version, nil).Resubscribe(t.Context(), "c", subs(t, "t/1"))
			server.Close()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q in it", name, err, c.want)
			}
			if fault.IsFatal(err) || fault.IsPoison(err) || err != nil && strings.Contains(err.Error(), "secret@") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestOddAnswersOfVersion4AreNoSuccess(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		``, `{}`, `[]`, `null`, `{"code":0}`, `{"code":0,"data":[]}`, `{"code":0,"data":[{}]}`, `{"code":101,"data":[{"code":0}]}`,
		`{"code":0,"data":[{"code":0},{"code":0}]}`, `{"code":0,"data":[{"code":101}]}`, `{"code":0,"data":{"code":0}}`,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }))
		if res, err := open(t, server.URL, 4, nil).Resubscribe(t.Context(), "c", subs(t, "t/1")); err == nil {
			t.Errorf("%s: %+v, want an error", body, res)
		}
		server.Close()
	}
}

func TestASlowBrokerIsNotWaitedForLongerThanAsked(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		end := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
		defer server.Close()
		defer close(end)
		c := open(t, server.URL, version, func(c *emqxapi.Config) { c.Timeout = 50 * time.Millisecond })
		if _, err := c.Resubscribe(t.Context(), "c", subs(t, "t/1")); err == nil {
			t.Error("no error after the time-out")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Resubscribe(ctx, "c", subs(t, "t/1")); err == nil {
			t.Error("no error after ctx has ended")
		}
	})
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for _, cfg := range []emqxapi.Config{
		{URL: "emqx:18083", Version: 5, Timeout: time.Second, Log: log},
		{URL: "mqtt://emqx:1883", Version: 5, Timeout: time.Second, Log: log},
		{URL: "http://emqx:18083", Version: 3, Timeout: time.Second, Log: log},
		{URL: "http://emqx:18083", Version: 5, Log: log},
		{URL: "http://emqx:18083", Version: 5, Timeout: time.Second},
		{URL: "http://\x00", Version: 5, Timeout: time.Second, Log: log},
	} {
		if _, err := emqxapi.New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}
