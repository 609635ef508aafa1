package cassandra

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gocql/gocql"

	"github.com/restante/restante/fault"
)

//go:embed schema_emqx3.cql
var schemaEMQX3 string

//go:embed schema_emqx4.cql
var schemaEMQX4 string

//go:embed schema_own.cql
var schemaOwn string

// table is one CREATE TABLE of the schema.
type table struct{ name, ddl string }

// tables are those of a store, in the form that a release takes.
func (c *Config) tables(release string) []table {
	emqx := schemaEMQX4
	if major(release) < 4 {
		emqx = schemaEMQX3
	}
	var all []table
	for part := range strings.SplitSeq(c.named(emqx+"\n"+schemaOwn), ";\n") {
		_, rest, ok := strings.Cut(part, "CREATE TABLE ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, " ")
		all = append(all, table{strings.TrimPrefix(name, c.Keyspace+"."), "CREATE TABLE IF NOT EXISTS " + rest})
	}
	return all
}

// major is the number before the first dot; 4 when there is none.
func major(release string) int {
	text, _, _ := strings.Cut(release, ".")
	if n, err := strconv.Atoi(text); err == nil {
		return n
	}
	return 4
}

// column is what is compared of a column.
type column struct {
	name, typ, kind string
	position        int
	order           string // of a clustering column
}

func (c column) String() string {
	switch c.kind {
	case "partition_key":
		return fmt.Sprintf("%s, number %d of the partition key", c.typ, c.position+1)
	case "clustering":
		return fmt.Sprintf("%s, number %d of the clustering key, %s", c.typ, c.position+1, strings.ToUpper(c.order))
	}
	return c.typ
}

// model reads the columns out of a CREATE TABLE of ours.
func model(ddl string) []column {
	var all []column
	kinds := map[string]column{}
	for line := range strings.SplitSeq(ddl, "\n") {
		line = strings.TrimSpace(line)
		key, isKey := strings.CutPrefix(line, "PRIMARY KEY (")
		name, typ, _ := strings.Cut(strings.TrimSuffix(line, ","), " ")
		switch {
		case isKey:
			key, _, _ = strings.Cut(key, ")")
			for i, name := range strings.Split(key, ", ") {
				if i == 0 {
					kinds[name] = column{kind: "partition_key", order: "none"}
				} else {
					kinds[name] = column{kind: "clustering", position: i - 1, order: "asc"}
				}
			}
		case strings.Contains(line, "CLUSTERING ORDER BY ("):
			_, order, _ := strings.Cut(line, "CLUSTERING ORDER BY (")
			order, _, _ = strings.Cut(order, ")")
			name, way, _ := strings.Cut(order, " ")
			k := kinds[name]
			k.order = strings.ToLower(way)
			kinds[name] = k
		case typ != "" && !strings.Contains(strings.ReplaceAll(typ, ", ", ","), " ") && !strings.Contains(line, "("):
			all = append(all, column{name: name, typ: typ, kind: "regular", position: -1, order: "none"})
		}
	}
	for i, c := range all {
		if k, ok := kinds[c.name]; ok {
			all[i] = column{c.name, c.typ, k.kind, k.position, k.order}
		}
	}
	return all
}

// columns reads what the keyspace has, by table.
func (c *Config) columns(ctx context.Context, g *gocql.Session) (map[string][]column, error) {
	all := map[string][]column{}
	iter := g.Query(`SELECT table_name, column_name, type, kind, position, clustering_order FROM system_schema.columns WHERE keyspace_name = ?`, c.Keyspace).
		WithContext(ctx).Idempotent(true).Iter()
	var name string
	var col column
	for iter.Scan(&name, &col.name, &col.typ, &col.kind, &col.position, &col.order) {
		all[name] = append(all[name], col)
	}
	if err := iter.Close(); err != nil {
		return nil, explain("read the tables of keyspace "+c.Keyspace, err)
	}
	return all, nil
}

// verify names each difference between the tables and what they must be. Options are the operator's.
func (c *Config) verify(ctx context.Context, s *session) error {
	have, err := c.columns(ctx, s.Session)
	if err != nil {
		return err
	}
	var found []string
	missing := false
	for _, t := range c.tables(s.release) {
		cols, ok := have[t.name]
		if !ok {
			missing = true
			found = append(found, fmt.Sprintf("table %s.%s is missing", c.Keyspace, t.name))
			continue
		}
		found = append(found, differences(c.Keyspace+"."+t.name, model(t.ddl), cols)...)
	}
	switch {
	case len(found) == 0:
		return nil
	case missing && !slices.ContainsFunc(found, func(s string) bool { return !strings.HasSuffix(s, "is missing") }):
		return fault.Fatal(fmt.Errorf("%s: %s", strings.Join(found, "; "), migrateAdvice))
	}
	return different(found)
}

// different is the error of tables that are not what they must be, nil = there are none.
func different(found []string) error {
	if len(found) == 0 {
		return nil
	}
	return fault.Fatal(fmt.Errorf("%s: Restante never alters a table: put these right by hand, or name another keyspace or table prefix in the config; "+
		"a table that is missing is made by \"restante migrate\"", strings.Join(found, "; ")))
}

// differences compares the columns of a table.
func differences(table string, want, have []column) []string {
	var found []string
	byName := func(a, b column) int { return cmp.Compare(a.name, b.name) }
	want, have = slices.SortedFunc(slices.Values(want), byName), slices.SortedFunc(slices.Values(have), byName)
	for _, w := range want {
		i, ok := slices.BinarySearchFunc(have, w, byName)
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("table %s: column %s is missing", table, w.name))
		case have[i] != w:
			found = append(found, fmt.Sprintf("table %s: column %s is %s, want %s", table, w.name, have[i], w))
		}
	}
	for _, h := range have {
		if _, ok := slices.BinarySearchFunc(want, h, byName); !ok {
			found = append(found, fmt.Sprintf("table %s: column %s does not belong there", table, h.name))
		}
	}
	return found
}

// ddlTime bounds one change of the schema: all servers have to agree on it.
const ddlTime = time.Minute

// Migrate makes the keyspace and the tables that are missing, and says what it did; on a dry run it changes nothing and says what
// it would do. Run again it finds nothing to do. It never alters a table: one that is not what it must be is an error that names the
// differences, when all the others are made. Only one should run at a time.
func Migrate(ctx context.Context, cfg Config, dryRun bool) (done []string, err error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	cfg.ReadTimeout, cfg.WriteTimeout = ddlTime, ddlTime
	g, err := cfg.bare(ctx, cfg.Hosts)
	if err != nil {
		return nil, cfg.blame(ctx, err)
	}
	defer g.Close()
	var release string
	if err := g.Query(`SELECT release_version FROM system.local`).WithContext(ctx).Idempotent(true).Scan(&release); err != nil {
		return nil, explain("read system.local of "+cfg.where(), err)
	}
	run := func(say, ddl string) error {
		if !dryRun {
			if err := g.Query(ddl).WithContext(ctx).Exec(); err != nil {
				return explain(say, err)
			}
			if err := g.AwaitSchemaAgreement(ctx); err != nil {
				return fmt.Errorf("%s: wait for the servers to agree: %w", say, err)
			}
		}
		done = append(done, say)
		return nil
	}
	var name string
	err = g.Query(`SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?`, cfg.Keyspace).WithContext(ctx).Idempotent(true).Scan(&name)
	switch {
	case errors.Is(err, gocql.ErrNotFound):
		replication, err := cfg.replication(ctx, g)
		if err != nil {
			return nil, err
		}
		if err := run("create keyspace "+cfg.Keyspace, fmt.Sprintf("CREATE KEYSPACE IF NOT EXISTS %s WITH replication = %s AND durable_writes = true", cfg.Keyspace, replication)); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, explain("read the keyspaces of "+cfg.where(), err)
	}
	have, err := cfg.columns(ctx, g)
	if err != nil {
		return nil, err
	}
	var wrong []string
	for _, t := range cfg.tables(release) {
		if cols, ok := have[t.name]; ok {
			wrong = append(wrong, differences(cfg.Keyspace+"."+t.name, model(t.ddl), cols)...)
			continue
		}
		if err := run("create table "+cfg.Keyspace+"."+t.name, t.ddl); err != nil {
			return done, err
		}
	}
	return done, different(wrong)
}

// replication is the map of CREATE KEYSPACE.
func (c *Config) replication(ctx context.Context, g *gocql.Session) (string, error) {
	r := c.Replication
	if r == nil {
		r = map[string]string{"class": "SimpleStrategy", "replication_factor": "1"}
	}
	if c.Replication == nil && c.LocalDC != "" {
		servers, err := servers(ctx, g)
		if err != nil {
			return "", explain("read the servers of "+c.where(), err)
		}
		n := 0
		for _, dc := range servers {
			n += boolInt(dc == c.LocalDC)
		}
		if n == 0 {
			return "", wrongDC(c.LocalDC, servers)
		}
		r = map[string]string{"class": "NetworkTopologyStrategy", c.LocalDC: strconv.Itoa(min(n, 3))}
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(r)) {
		parts = append(parts, quote(key)+": "+quote(r[key]))
	}
	return "{" + strings.Join(parts, ", ") + "}", nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// servers are the data centers of all servers, one for each.
func servers(ctx context.Context, g *gocql.Session) ([]string, error) {
	var all []string
	for _, text := range []string{`SELECT data_center FROM system.local`, `SELECT data_center FROM system.peers`} {
		iter := g.Query(text).WithContext(ctx).Idempotent(true).Iter()
		var dc string
		for iter.Scan(&dc) {
			all = append(all, dc)
		}
		if err := iter.Close(); err != nil {
			return nil, err
		}
	}
	return all, nil
}
