package e2etest

import (
	"database/sql"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // looked at as any user would
)

// Get asks an admin server; status 0 = it did not answer within a minute.
func Get(t *testing.T, addr, path string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: time.Minute}
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }() // it is read
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// AwaitReady waits until /readyz says yes.
func AwaitReady(t *testing.T, addr string) {
	t.Helper()
	var first, body string
	for until := time.Now().Add(Patience); time.Now().Before(until); time.Sleep(25 * time.Millisecond) {
		var status int
		status, body = Get(t, addr, "/readyz")
		if first == "" && status != 0 {
			first = body
		}
		if status == http.StatusOK {
			if awaited, held := conditions(first), conditions(body); !slices.Equal(awaited, held) {
				t.Errorf("%s waited for %q at first and is ready by %q", addr, awaited, held)
			}
			return
		}
	}
	t.Fatalf("%s is not ready: %s", addr, body)
}

var conditionName = regexp.MustCompile(`(?m)^(?:ok  |FAIL) (\S+(?: \S+)*)`)

// conditions are the names in an answer of /readyz.
func conditions(body string) []string {
	var out []string
	for _, m := range conditionName.FindAllStringSubmatch(body, -1) {
		out = append(out, m[1])
	}
	return out
}

// Metric is the sum of a metric's samples whose labels hold all the texts given, such as `reason="malformed"`.
func Metric(t *testing.T, addr, name string, labels ...string) float64 {
	t.Helper()
	status, body := Get(t, addr, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("metrics of %s: status %d: %s", addr, status, body)
	}
	sum := 0.0
sample:
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(rest, l) {
				continue sample
			}
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			t.Fatalf("metric line %q: %v", line, err)
		}
		sum += v
	}
	return sum
}

// Table reads a table of a SQLite database that another process writes: its columns and its rows as texts.
func Table(t *testing.T, file, table string) (columns []string, rows [][]string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()                                               // nothing was written
	r, err := db.QueryContext(t.Context(), "select * from "+table+" order by 1, 2") //nolint:gosec // a test names the table
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // see above
	if columns, err = r.Columns(); err != nil {
		t.Fatal(err)
	}
	for r.Next() {
		texts := make([]sql.NullString, len(columns))
		into := make([]any, len(columns))
		for i := range texts {
			into[i] = &texts[i]
		}
		if err := r.Scan(into...); err != nil {
			t.Fatal(err)
		}
		row := make([]string, len(columns))
		for i, text := range texts {
			row[i] = text.String // NULL is ""
		}
		rows = append(rows, row)
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return columns, rows
}

// AwaitRows waits until mqtt_msg has n rows.
func AwaitRows(t *testing.T, file string, n int) {
	t.Helper()
	var rows [][]string
	for until := time.Now().Add(Patience); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if _, rows = Table(t, file, "mqtt_msg"); len(rows) == n {
			return
		}
	}
	t.Fatalf("mqtt_msg has %d rows, want %d: %v", len(rows), n, rows)
}
