package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the demo looks at the database as any user would
)

// stackAddresses is what "restante up -o json" prints.
type stackAddresses struct {
	MQTT     map[string]string `json:"mqtt"`
	Kafka    string            `json:"kafka"`
	Database map[string]string `json:"database"`
	Data     string            `json:"data"`
	Admin    string            `json:"admin,omitempty"`
}

func (a stackAddresses) mqtt() string     { return first(a.MQTT) }
func (a stackAddresses) database() string { return first(a.Database) }

func first(m map[string]string) string {
	for _, v := range m {
		return v
	}
	return ""
}

// start runs "restante up" as a process of its own, so that it can be killed like one.
func (s *story) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, "up", "--data", s.dir, "--listen", "127.0.0.1:0", "-o", "json") //nolint:gosec // itself
	cmd.Stderr = s.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the stack: %w", err)
	}
	s.cmd = cmd
	line := make(chan string, 1)
	go func() { // ends with the process
		l, _ := bufio.NewReader(out).ReadString('\n') // an empty line says enough
		line <- l
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case l := <-line:
		if err := json.Unmarshal([]byte(l), &s.at); err != nil {
			return fmt.Errorf("the stack did not start: run \"restante demo -v\" to see why (%w)", errors.Join(err, cmd.Wait()))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the stack did not start in time: %w", context.Cause(ctx))
	}
}

// kill is kill -9.
func (s *story) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended by itself
	_ = s.cmd.Wait()         // killed is what it says
	s.cmd = nil
}

// stop ends the stack in peace.
func (s *story) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the stack: %w", err)
	}
	err := s.cmd.Wait()
	s.cmd = nil
	if err != nil {
		return fmt.Errorf("the stack did not end well: %w", err)
	}
	return nil
}

// rows reads mqtt_msg as the sqlite3 shell would.
func (s *story) rows(ctx context.Context) (columns []string, rows [][]string, err error) {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: s.at.database()}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = db.Close() }() // nothing was written
	r, err := db.QueryContext(ctx, "select * from mqtt_msg order by topic, msgid")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = r.Close() }() // see above
	if columns, err = r.Columns(); err != nil {
		return nil, nil, err
	}
	for r.Next() {
		row := make([]string, len(columns))
		into := make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := r.Scan(into...); err != nil {
			return nil, nil, err
		}
		rows = append(rows, row)
	}
	return columns, rows, r.Err()
}

// awaitRows waits until mqtt_msg has n rows.
func (s *story) awaitRows(ctx context.Context, n int) (columns []string, rows [][]string, err error) {
	const patience = 15 * time.Second
	for until := time.Now().Add(patience); ; {
		columns, rows, err = s.rows(ctx)
		if err != nil || len(rows) == n || time.Now().After(until) {
			return columns, rows, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// metric reads a counter from /metrics, summed over its labels.
func (s *story) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.at.Admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }() // it is read
	sum := 0.0
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		l := lines.Text()
		if !strings.HasPrefix(l, name+"{") && !strings.HasPrefix(l, name+" ") {
			continue
		}
		v, err := strconv.ParseFloat(l[strings.LastIndexByte(l, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric line %q: %w", l, err)
		}
		sum += v
	}
	return sum, lines.Err()
}
