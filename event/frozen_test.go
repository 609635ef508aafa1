package event_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
)

var freeze = flag.String("freeze", "", "write what is encoded now as the records of this `release`, which no later one may fail to read")

// frozenRecord is a record as a release wrote it, byte for byte.
type frozenRecord struct {
	Name    string         `json:"name"`
	Topic   event.Kind     `json:"topic"`
	Time    int64          `json:"time"` // ms
	Key     []byte         `json:"key"`
	Headers []frozenHeader `json:"headers"`
	Value   []byte         `json:"value"`
}

type frozenHeader struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

func (f frozenRecord) wire() event.Wire {
	w := event.Wire{Key: f.Key, Value: f.Value, Time: time.UnixMilli(f.Time)}
	for _, h := range f.Headers {
		w.Headers = append(w.Headers, event.Header{Key: h.Key, Value: h.Value})
	}
	return w
}

func writeFrozen(t *testing.T, release string) {
	t.Helper()
	var all []frozenRecord
	for _, c := range goldenCases(t) {
		for _, r := range c.event.Routes() {
			w := event.Encode(c.event, r, now)
			f := frozenRecord{Name: c.name, Topic: r.Kind, Time: w.Time.UnixMilli(), Key: w.Key, Value: w.Value}
			for _, h := range w.Headers {
				f.Headers = append(f.Headers, frozenHeader{h.Key, h.Value})
			}
			all = append(all, f)
		}
	}
	b, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join("testdata", "frozen", release+".json"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err) // what a release wrote is written once
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestWhatEarlierReleasesWroteIsRead: every attribute of it, whatever else a later minor version puts beside them. The files are never
// written anew.
func TestWhatEarlierReleasesWroteIsRead(t *testing.T) {
	t.Parallel()
	if *freeze != "" {
		writeFrozen(t, *freeze)
	}
	files, err := filepath.Glob(filepath.Join("testdata", "frozen", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no frozen records: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var all []frozenRecord
		if err := json.Unmarshal(text, &all); err != nil || len(all) == 0 {
			t.Fatalf("%s: %d records, %v", file, len(all), err)
		}
		for _, f := range all {
			name := filepath.Base(file) + " " + f.Name + " in " + string(f.Topic)
			e, err := event.Decode(f.Topic, f.wire())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			routes := e.Routes()
			i := slices.IndexFunc(routes, func(r event.Route) bool { return r.Kind == f.Topic })
			if i < 0 {
				t.Errorf("%s: it does not belong there any more: %v", name, routes)
				continue
			}
			again := event.Encode(e, routes[i], now)
			if string(again.Key) != string(f.Key) || string(again.Value) != string(f.Value) || again.Time.UnixMilli() != f.Time {
				t.Errorf("%s: its key, value or time is not read: %q %q %v", name, again.Key, again.Value, again.Time)
			}
			for _, h := range f.Headers {
				if !slices.ContainsFunc(again.Headers, func(a event.Header) bool { return a.Key == h.Key && string(a.Value) == string(h.Value) }) {
					t.Errorf("%s: header %s: %q is lost", name, h.Key, h.Value)
				}
			}
			for _, later := range []event.Wire{with(f.wire(), "ce_invented_later", "x"), with(f.wire(), "ce_dataschema", "urn:restante:event:1")} {
				got, err := event.Decode(f.Topic, later)
				if diff := cmp.Diff(e, got, sameEvent); err != nil || diff != "" {
					t.Errorf("%s: of a later minor version: %v\n%s", name, err, diff)
				}
			}
			if _, err := event.Decode(f.Topic, with(f.wire(), "ce_dataschema", "urn:restante:event:2")); !errors.Is(err, event.ErrUnknownMajor) {
				t.Errorf("%s: of the next major version: %v", name, err)
			}
		}
	}
}
