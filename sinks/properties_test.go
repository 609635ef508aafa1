package sinks_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/restante/restante/event"
	"github.com/restante/restante/sinks"
)

func TestPropertiesAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		props event.Properties
		text  string
	}{
		"none": {},
		"all": {
			event.Properties{
				User: []event.UserProperty{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "\"\x00é"}}, ContentType: "text/plain",
				ResponseTopic: "r/1", CorrelationData: []byte{0, 0xff}, PayloadFormat: 1,
			},
			`{"user":[["b","1"],["a","2"],["b","\"\u0000é"]],"content_type":"text/plain","response_topic":"r/1","correlation_data":"AP8=","payload_format":1}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := sinks.PropertiesText(tt.props)
			if err != nil || text != tt.text {
				t.Fatalf("written as %s, %v, want %s", text, err, tt.text)
			}
			got, err := sinks.ParseProperties(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.props, got); diff != "" {
				t.Errorf("read again (-written +read):\n%s", diff)
			}
		})
	}
}

func FuzzParseProperties(f *testing.F) {
	f.Add("")
	f.Add("{}")
	f.Add(`{"user":[["a","b"],["a"]],"correlation_data":"AP8=","payload_format":1}`)
	f.Add(`{"payload_format":256}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := sinks.ParseProperties(text)
		if err != nil {
			return
		}
		again, err := sinks.PropertiesText(p)
		if err != nil {
			t.Fatalf("%q was read as %+v, which cannot be written: %v", text, p, err)
		}
		if got, err := sinks.ParseProperties(again); err != nil || !cmp.Equal(got, p, cmpopts.EquateEmpty()) {
			t.Fatalf("%q was read as %+v, written as %q, read again as %+v, %v", text, p, again, got, err)
		}
	})
}
