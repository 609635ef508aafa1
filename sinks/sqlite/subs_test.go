package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/sinks/sqlite"
)

// TestARowThatIsNoFilterIsShownAsNone: somebody else wrote it, and it must not hide the others.
func TestARowThatIsNoFilterIsShownAsNone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	if _, err := sqlite.Migrate(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // all was committed
	if _, err := db.ExecContext(t.Context(), `INSERT INTO mqtt_sub (clientid, topic, qos, stamp) VALUES ('c', 'a/#/b', 1, 1), ('c', 'b/#', 1, 1)`); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // nothing was written
	subs, err := s.Subs(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, sub := range subs {
		got = append(got, sub.Filter.String())
	}
	if diff := cmp.Diff([]string{"", "b/#"}, got); diff != "" {
		t.Error(diff)
	}
}
