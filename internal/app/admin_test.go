package app

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func startAdmin(t *testing.T, c Admin, h *Health) string {
	t.Helper()
	c.Listen = "127.0.0.1:0"
	a, err := StartAdmin(t.Context(), c, NewRegistry("writer", h), h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return "http://" + a.Addr.String()
}

func get(t *testing.T, url, accept string) (status int, header http.Header, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestReadyNeedsAllConditions(t *testing.T) {
	t.Parallel()
	h := NewHealth()
	url := startAdmin(t, Admin{}, h) + "/readyz"
	steps := []struct {
		what   string
		do     func()
		status int
		body   string
	}{
		{"nothing is known", func() {}, 503, "FAIL started  not yet\n"},
		{"one holds, one not", func() { h.Set("kafka", true, "joined"); h.Set("sink", false, "refused") }, 503, "ok   kafka  joined\nFAIL sink  refused\n"},
		{"all hold", func() { h.Set("sink", true, "") }, 200, "ok   kafka  joined\nok   sink\n"},
		{"draining", h.Drain, 503, "ok   kafka  joined\nok   sink\nFAIL running  shutting down\n"},
		{"draining is for good", func() { h.Set("sink", true, "") }, 503, "ok   kafka  joined\nok   sink\nFAIL running  shutting down\n"},
	}
	for _, s := range steps {
		s.do()
		if status, _, body := get(t, url, ""); status != s.status || body != s.body {
			t.Errorf("%s: got %d\n%s\nwant %d\n%s", s.what, status, body, s.status, s.body)
		}
	}
	_, header, body := get(t, url, "application/json")
	var got struct {
		OK         bool
		Conditions []Condition
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := []Condition{{"kafka", true, "joined"}, {"sink", true, ""}, {"running", false, "shutting down"}}
	if d := cmp.Diff(want, got.Conditions); d != "" || got.OK || header.Get("Content-Type") != "application/json" {
		t.Errorf("JSON: %s\n%s", body, d)
	}
}

func TestAwaitedConditionsKeepAProcessUnready(t *testing.T) {
	t.Parallel()
	h := NewHealth("kafka", "sink")
	h.Set("kafka", true, "")
	if ok, all := h.Ready(); ok {
		t.Errorf("ready with %v", all)
	}
}

func TestAliveMeansThatLoopsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth()
		alive := func() bool { ok, _ := h.Alive(); return ok }
		if !alive() {
			t.Error("a process without loops is alive")
		}
		a, b := h.Loop("fetch", time.Minute), h.Loop("fetch", time.Minute)
		time.Sleep(time.Minute)
		if !alive() {
			t.Error("within the limit a loop is alive")
		}
		a.Turn()
		time.Sleep(time.Second)
		ok, all := h.Alive()
		want := []Condition{{"fetch", true, ""}, {"fetch", false, "has not turned for 1m1s, the limit is 1m0s"}}
		if d := cmp.Diff(want, all); ok || d != "" {
			t.Errorf("one of two stands still: got %v\n%s", ok, d)
		}
		b.Stop()
		h.Drain()
		if !alive() {
			t.Error("a loop that ended as it should, and a drain, leave the process alive")
		}
	})
}

func TestLivezAnswers(t *testing.T) {
	t.Parallel()
	h := NewHealth()
	url := startAdmin(t, Admin{}, h) + "/livez"
	if status, _, body := get(t, url, ""); status != 200 || body != "ok\n" {
		t.Errorf("got %d %q", status, body)
	}
	h.Loop("fetch", 0)
	time.Sleep(time.Millisecond)
	if status, _, body := get(t, url, ""); status != 503 || !strings.HasPrefix(body, "FAIL fetch  has not turned") {
		t.Errorf("got %d %q", status, body)
	}
}

func TestMetricsTellTheBuild(t *testing.T) {
	t.Parallel()
	url := startAdmin(t, Admin{}, NewHealth())
	_, header, body := get(t, url+"/metrics", "application/openmetrics-text; version=1.0.0")
	if !strings.HasPrefix(header.Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(body, "# EOF\n") {
		t.Errorf("OpenMetrics is off: %s", header.Get("Content-Type"))
	}
	for _, want := range []string{`restante_build_info{component="writer",goversion="go1.`, "go_goroutines ", "process_start_time_seconds ", "promhttp_metric_handler"} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics miss %s", want)
		}
	}
	if problems, err := testutil.GatherAndLint(NewRegistry("writer", NewHealth())); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

func TestProfilesAreServedOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for _, on := range []bool{false, true} {
		url := startAdmin(t, Admin{PProf: on}, NewHealth())
		want := map[bool]int{false: 404, true: 200}[on]
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline"} {
			if status, _, _ := get(t, url+path, ""); status != want {
				t.Errorf("pprof %v: %s gives %d, want %d", on, path, status, want)
			}
		}
	}
}

func TestAddressInUseSaysSo(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	log := slog.New(slog.DiscardHandler)
	_, err = StartAdmin(context.Background(), Admin{Listen: l.Addr().String()}, NewRegistry("x", NewHealth()), NewHealth(), log)
	if err == nil || !strings.HasPrefix(err.Error(), "admin.listen: address 127.0.0.1:") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v", err)
	}
}

func TestLogsAreJSONOfTheLevel(t *testing.T) {
	t.Parallel()
	for level, want := range map[string]int{"debug": 4, "info": 3, "warn": 2, "error": 1, "?": 3} {
		var b strings.Builder
		log := NewLogger(&b, "writer", level)
		log.Debug("a")
		log.Info("b")
		log.Warn("c")
		log.Error("d", "password", Secret("hunter2"))
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(lines) != want {
			t.Errorf("%s: got %d lines, want %d", level, len(lines), want)
		}
		var last map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if last["component"] != "writer" || last["msg"] != "d" || last["password"] != mask {
			t.Errorf("got %v", last)
		}
	}
}
