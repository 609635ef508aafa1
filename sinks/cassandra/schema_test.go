package cassandra

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/stack"
)

// TestTablesOfEMQXAreThoseOfItsManual: the form for 3.11 is the manual's text, the other one lacks two options and nothing else.
func TestTablesOfEMQXAreThoseOfItsManual(t *testing.T) {
	t.Parallel()
	old, now := strings.Split(schemaEMQX3, "\n"), strings.Split(schemaEMQX4, "\n")
	var kept []string
	gone := 0
	for _, line := range old[1:] {
		if strings.Contains(line, "read_repair_chance") {
			gone++
			continue
		}
		kept = append(kept, line)
	}
	if d := cmp.Diff(kept, now[1:]); d != "" || gone != 4 {
		t.Errorf("%d lines gone; (-3.11 +4.0):\n%s", gone, d)
	}
	cfg := Config{Keyspace: "mqtt"}
	for release, want := range map[string]bool{"3.11.19": true, "4.0.1": false, "5.0.9": false, "6.0-alpha1": false} {
		if got := strings.Contains(cfg.tables(release)[0].ddl, "dclocal_read_repair_chance = 0.1"); got != want {
			t.Errorf("%s: with the old options = %v", release, got)
		}
	}
	want := []column{
		{"topic", "text", "partition_key", 0, "none"},
		{"msgid", "text", "clustering", 0, "desc"},
		{"arrived", "timestamp", "regular", -1, "none"},
		{"payload", "text", "regular", -1, "none"},
		{"qos", "int", "regular", -1, "none"},
		{"retain", "int", "regular", -1, "none"},
		{"sender", "text", "regular", -1, "none"},
	}
	got := model(cfg.tables("5.0.9")[0].ddl)
	if d := cmp.Diff(differences("mqtt.mqtt_msg", want, got), []string(nil)); d != "" {
		t.Error(d)
	}
}

// TestEachDifferenceIsNamed: a schema that is not ours is refused with all that is wrong in one error.
func TestEachDifferenceIsNamed(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Keyspace, cfg.TablePrefix = stack.Unique(t), "p_"
	g := plain(t, cfg)
	t.Cleanup(func() {
		if err := g.Query(`DROP KEYSPACE IF EXISTS ` + cfg.Keyspace).Exec(); err != nil {
			t.Error(err)
		}
	})
	done, err := Migrate(t.Context(), cfg, true)
	if err != nil || len(done) != 9 || done[0] != "create keyspace "+cfg.Keyspace || done[1] != "create table "+cfg.Keyspace+".p_mqtt_msg" {
		t.Fatalf("a dry run says %q (%v)", done, err)
	}
	if again, err := Migrate(t.Context(), cfg, true); err != nil || !cmp.Equal(done, again) {
		t.Fatalf("a dry run did something: then it says %q (%v)", again, err)
	}
	do(t, g, `CREATE KEYSPACE `+cfg.Keyspace+` WITH replication = {'class': 'SimpleStrategy', 'replication_factor': '1'}`)
	do(t, g, `CREATE TABLE `+cfg.Keyspace+`.p_mqtt_msg (topic text, msgid text, arrived timestamp, payload blob, qos int, retain boolean, more int,
		PRIMARY KEY (topic, msgid)) WITH CLUSTERING ORDER BY (msgid ASC) AND gc_grace_seconds = 3600`)
	wrong := "table " + cfg.Keyspace + ".p_mqtt_msg: column payload is blob"
	if done, err = Migrate(t.Context(), cfg, false); !fault.IsFatal(err) || !strings.Contains(err.Error(), wrong) || len(done) != 7 {
		t.Fatalf("Migrate did %q (%v), want the 7 tables that are missing and %q", done, err, wrong)
	}
	for _, dry := range []bool{false, true} {
		if done, err = Migrate(t.Context(), cfg, dry); !fault.IsFatal(err) || !strings.Contains(err.Error(), wrong) || len(done) != 0 {
			t.Errorf("run again it did %q (%v), want nothing and %q", done, err, wrong)
		}
	}
	s := opened(t, cfg)
	err = s.Check(t.Context())
	if !fault.IsFatal(err) {
		t.Fatalf("Check gave %v, want a fatal error", err)
	}
	t.Log(err)
	table := "table " + cfg.Keyspace + ".p_mqtt_msg: column "
	for _, w := range []string{
		table + "payload is blob, want text", table + "retain is boolean, want int", table + "sender is missing", table + "more does not belong there",
		table + "msgid is text, number 1 of the clustering key, ASC, want text, number 1 of the clustering key, DESC", "never alters a table",
	} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q", w)
		}
	}
	err = s.CheckRetention(t.Context(), 72*time.Hour)
	if !fault.IsFatal(err) || !strings.Contains(err.Error(), "p_mqtt_msg has gc_grace_seconds = 3600 (1h0m0s), the log keeps records for 72h0m0s") ||
		strings.Contains(err.Error(), "p_acked") {
		t.Errorf("CheckRetention gave %v, want mqtt_msg alone named", err)
	}
	if err := s.CheckRetention(t.Context(), 30*time.Minute); err != nil {
		t.Error(err)
	}
}

// TestTheConnectionTestSpeaksOfEachServer: one line for each, though the store works.
func TestTheConnectionTestSpeaksOfEachServer(t *testing.T) {
	t.Parallel()
	cfg := ready(t)
	good := cfg.Hosts[0]
	cfg.Hosts = []string{good, "127.0.0.1:1", "nowhere.invalid:9042"}
	r, err := Test(t.Context(), cfg, 72*time.Hour)
	if err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	want := []string{good + ": ok: Cassandra 5.0", "127.0.0.1:1: reach the server", "nowhere.invalid:9042: reach the server"}
	for i, s := range r.Servers {
		t.Log(s)
		if !strings.HasPrefix(s.String(), want[i]) || (s.Err == nil) != (i == 0) {
			t.Errorf("%s, want %s …", s, want[i])
		}
	}
	cfg.Hosts = cfg.Hosts[:1]
	if r, err = Test(t.Context(), cfg, 11*24*time.Hour); err != nil || !fault.IsFatal(r.Err) || strings.Count(r.Err.Error(), "gc_grace_seconds = 864000") != 8 {
		t.Errorf("got %v, %v, want the error that a process ends with, with a word on each table", r.Err, err)
	}
	g := plain(t, ready(t))
	if n := count(t, g, `SELECT count(*) FROM `+cfg.Keyspace+`.mqtt_msg WHERE topic = '$restante/check'`); n != 0 {
		t.Errorf("%d rows of the test are left", n)
	}
}

// TestConfigIsRefusedAtOnce: what cannot work is said before any server is asked.
func TestConfigIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{
		"no hosts":            {},
		"an empty host":       {Hosts: []string{"a", ""}},
		"no port":             {Hosts: []string{"a:x"}},
		"a quoted keyspace":   {Hosts: []string{"a"}, Keyspace: `Mqtt"; DROP`},
		"a prefix with a dot": {Hosts: []string{"a"}, TablePrefix: "x.y"},
		"consistency SOME":    {Hosts: []string{"a"}, Consistency: "SOME"},
		"negative numbers":    {Hosts: []string{"a"}, NumConns: -1},
	} {
		if _, err := Open(t.Context(), c); !fault.IsFatal(err) {
			t.Errorf("%s: got %v, want a fatal error", name, err)
		}
	}
	s, err := Open(t.Context(), Config{Hosts: []string{"cass-1:9999", "cass-2"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.cfg.Port != 9999 || s.cfg.Keyspace != "mqtt" || s.cfg.Consistency != "LOCAL_QUORUM" {
		t.Errorf("port %d, keyspace %s, consistency %s", s.cfg.Port, s.cfg.Keyspace, s.cfg.Consistency)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
