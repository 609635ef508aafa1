package mqtt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

func mosquitto(t testing.TB) *mqtt.Mosquitto {
	t.Helper()
	p := plain(t)
	p.Source, p.Minter = "restante/mosquitto", &event.Minter{Node: 3, Now: func() time.Time { return captured }}
	return mqtt.NewMosquitto(p, ownClient)
}

func logLine(part, text string) mqtt.Packet {
	return mqtt.Packet{Topic: "$SYS/broker/log/" + part, Payload: []byte(text), QoS: 2}
}

// told is what a decoder makes of a packet, in short.
func told(d mqtt.Decoder, p mqtt.Packet) string {
	events, err := d.Decode(p)
	if err != nil {
		if r, ok := errors.AsType[*mqtt.Refusal](err); ok {
			return string(r.Counter)
		}
		return err.Error()
	}
	switch e := events[0].(type) { //nolint:gochecksumtype // the others are not told by a log
	case event.Subscribed:
		return fmt.Sprintf("%s subscribes %s at %d", e.Client, e.Filter, e.QoS)
	case event.Unsubscribed:
		return fmt.Sprintf("%s unsubscribes %s", e.Client, e.Filter)
	case event.Connected:
		return fmt.Sprintf("%s connects, clean start %d, user %q", e.Client, e.CleanStart, e.Username)
	case event.Disconnected:
		return fmt.Sprintf("%s disconnects: %s", e.Client, e.Reason)
	default:
		return fmt.Sprintf("%T", e)
	}
}

// What a Mosquitto 2.0.11 wrote while clients came and went: among them ids and filters with spaces, a user name that looks like the
// end of a line, a take-over, a cut connection, a broken packet, and logins that failed.
func TestLinesOfARealMosquittoAreRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "mosquitto-2.0.11")
	text, err := os.ReadFile(path + ".lines")
	if err != nil {
		t.Fatal(err)
	}
	d := mosquitto(t)
	var got strings.Builder
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 4)
		events, err := d.Decode(mqtt.Packet{Topic: f[0], Payload: []byte(f[3])})
		r, refused := errors.AsType[*mqtt.Refusal](err)
		switch {
		case refused:
			fmt.Fprintf(&got, "%s\n  %s\n", f[3], r.Counter)
		case err != nil || len(events) != 1:
			t.Fatalf("%s: %v, %v", line, events, err)
		default:
			fmt.Fprintf(&got, "%s\n  %s\n", f[3], describe(events[0]))
		}
	}
	if *update {
		if err := os.WriteFile(path+".golden", []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path + ".golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("events differ (-want +got):\n%s", diff)
	}
}

func TestMosquittoReadsALineInOneWayOnly(t *testing.T) {
	t.Parallel()
	connects := func(clients ...string) (out []mqtt.Packet) {
		for _, c := range clients {
			out = append(out, logLine("N", fmt.Sprintf("1795419915: New client connected from 127.0.0.1:4 as %s (p2, c1, k60).", c)))
		}
		return out
	}
	const at = "1795419915: "
	for sentence, c := range map[string]struct {
		before []mqtt.Packet
		packet mqtt.Packet
		want   string
	}{
		"the last way for unknown clients":      {nil, logLine("M/subscribe", at+"dev 1 1 t/1"), "dev 1 subscribes t/1 at 1"},
		"the known one of two":                  {connects("dev"), logLine("M/subscribe", at+"dev 1 1 t/1"), "dev subscribes 1 t/1 at 1"},
		"two that are known":                    {connects("dev", "dev 1"), logLine("M/subscribe", at+"dev 1 1 t/1"), "ambiguous_line"},
		"a filter that cannot be is no way":     {connects("a", "a 1 #"), logLine("M/subscribe", at+"a 1 # 2 t"), "a 1 # subscribes t at 2"},
		"no QoS":                                {nil, logLine("M/subscribe", at+"dev 3 t"), "refused_line"},
		"no filter":                             {nil, logLine("M/subscribe", at+"dev 1 "), "refused_line"},
		"no client":                             {nil, logLine("M/subscribe", at+" 1 t"), "refused_line"},
		"our own":                               {nil, logLine("M/subscribe", at+"restante-ingest-0-0 1 t"), "own_event"},
		"a shared one":                          {nil, logLine("M/subscribe", at+"d 1 $share/g/t"), "d subscribes $share/g/t at 1"},
		"an unsubscribe that is plain":          {nil, logLine("M/unsubscribe", at+"dev t/#"), "dev unsubscribes t/#"},
		"an unsubscribe with spaces":            {nil, logLine("M/unsubscribe", at+"dev a b"), "ambiguous_line"},
		"of a known client":                     {connects("dev a"), logLine("M/unsubscribe", at+"dev a b"), "dev a unsubscribes b"},
		"of two known clients":                  {connects("dev a", "dev"), logLine("M/unsubscribe", at+"dev a b"), "ambiguous_line"},
		"of the one that has subscribed":        {append(connects("dev", "dev a"), logLine("M/subscribe", at+"dev 1 a b")), logLine("M/unsubscribe", at+"dev a b"), "dev unsubscribes a b"},
		"a user":                                {nil, logLine("N", at+"New client connected from ::1:9 as d (p5, c0, k30, u'u as x')."), `d connects, clean start 1, user "u as x"`},
		"a user that ends like a line":          {nil, logLine("N", at+"New client connected from 1:9 as d (p5, c0, k30, u'x (p5, c1, k1, u'y')."), "ambiguous_line"},
		"half a connect":                        {nil, logLine("N", at+"New client connected from 1:9 as d (p5, c0"), "refused_line"},
		"closed":                                {nil, logLine("N", at+"Client d closed its connection."), "d disconnects: connection lost"},
		"timed out":                             {nil, logLine("N", at+"Client d has exceeded timeout, disconnecting."), "d disconnects: keepalive timeout"},
		"sent away":                             {nil, logLine("N", at+"Client d been disconnected by administrative action."), "d disconnects: administrative action"},
		"a later version":                       {nil, logLine("N", at+"Client d [127.0.0.1:4711] disconnected: Connection reset by peer."), "d disconnects: Connection reset by peer"},
		"a later version's address":             {nil, logLine("N", at+"Client d (127.0.0.1) disconnected due to malformed packet."), "d disconnects: malformed packet"},
		"an id that ends like an address":       {connects("d [1:2]"), logLine("N", at+"Client d [1:2] disconnected."), "d [1:2] disconnects: normal"},
		"a login that failed":                   {connects("d"), logLine("N", at+"Client d disconnected, not authorised."), "ignored_event"},
		"nobody":                                {nil, logLine("N", at+"Client <unknown> disconnected due to protocol error."), "ignored_event"},
		"an id that ends like a line":           {connects("victim disconnected due to x", "victim"), logLine("N", at+"Client victim disconnected due to x closed its connection."), "ambiguous_line"},
		"the same, where one is known":          {connects("victim disconnected due to x"), logLine("N", at+"Client victim disconnected due to x closed its connection."), "victim disconnected due to x disconnects: connection lost"},
		"no stamp":                              {nil, logLine("M/subscribe", "dev 1 t"), "refused_line"},
		"a stamp for people":                    {nil, logLine("M/subscribe", "2026-11-23T07:00:00: dev 1 t"), "refused_line"},
		"a stamp of minus":                      {nil, logLine("M/subscribe", "-1: dev 1 t"), "refused_line"},
		"a line that is cut off":                {nil, logLine("M/subscribe", at+"dev 1 t/"+strings.Repeat("a", 979)), "refused_line"},
		"a line that just fits":                 {nil, logLine("M/subscribe", at+"d 1 "+strings.Repeat("a", 982)), "d subscribes " + strings.Repeat("a", 982) + " at 1"},
		"a notice that is none of these":        {nil, logLine("N", at+"mosquitto version 2.0.11 running"), "ignored_event"},
		"another part of the log":               {nil, logLine("E", at+"Client d already connected, closing old connection."), "ignored_event"},
		"a publish":                             {nil, mqtt.Packet{Topic: "t/1", Payload: []byte("x")}, "event.Published"},
		"a fetch":                               {nil, mqtt.Packet{Topic: "offline/fetch/d", Payload: []byte("t/#")}, "d subscribes t/# at 1"},
		"a publish where lines would come from": {nil, mqtt.Packet{Topic: "SYS/broker/log/N", Payload: []byte(at + "Client d disconnected.")}, "event.Published"},
		"no UTF-8":                              {nil, logLine("M/subscribe", at+"d\xff 1 t"), "refused_line"},
	} {
		d := mosquitto(t)
		for _, p := range c.before {
			if got := told(d, p); strings.Contains(got, "_") {
				t.Fatalf("%s: %s: %s", sentence, p.Payload, got)
			}
		}
		if got := told(d, c.packet); got != c.want {
			t.Errorf("%s: %.100q was read as %.200q, want %.200q", sentence, c.packet.Payload, got, c.want)
		}
	}
}

// readable says why an event cannot stand in Kafka; "" when it can.
func readable(e event.Event) string {
	w := event.Encode(e, e.Routes()[0], captured)
	for _, h := range w.Headers {
		if !utf8.Valid(h.Value) {
			return "header " + h.Key + " is no text"
		}
	}
	if _, err := event.Decode(e.Routes()[0].Kind, w); err != nil {
		return err.Error()
	}
	return ""
}

// Ten thousand lines that are wrong in some way: no panic, each is refused with a reason or is an event that Kafka can hold, and none
// is of a client that the line does not name.
func TestTenThousandForgedLinesInventNothing(t *testing.T) {
	t.Parallel()
	good := []string{
		"M/subscribe|dev 1 1 t/+/x", "M/unsubscribe|dev 1 t/#", "N|New client connected from 127.0.0.1:45829 as dev 1 (p2, c0, k30, u'u1').",
		"N|Client dev 1 disconnected.", "N|Client dev5 closed its connection.", "N|Client dev5 disconnected due to protocol error.",
	}
	words := []string{" ", " 1 ", " 2 ", "#", "+", "/", "\x00", "\xff", " (p2, c0, k30).", " disconnected.", " as ", "Client ", "<unknown>", "dev", "$share/", "'", ": ", "\n", "𝄞"}
	r := rand.New(rand.NewPCG(7, 11))
	d, counts, events := mosquitto(t), map[mqtt.Counter]int{}, 0
	for range 10_000 {
		part, text, _ := strings.Cut(good[r.IntN(len(good))], "|")
		b := []byte("1795419915: " + text)
		for range 1 + r.IntN(4) {
			i := r.IntN(len(b))
			switch r.IntN(4) {
			case 0:
				b = b[:max(i, 1)]
			case 1:
				b[i] = byte(r.IntN(256))
			default:
				b = []byte(string(b[:i]) + words[r.IntN(len(words))] + string(b[i:]))
			}
		}
		got, err := d.Decode(logLine(part, string(b)))
		if err != nil {
			why, ok := errors.AsType[*mqtt.Refusal](err)
			if !ok || len(got) > 0 {
				t.Fatalf("%q: %v, %v", b, got, err)
			}
			counts[why.Counter]++
			continue
		}
		events++
		if why := readable(got[0]); why != "" {
			t.Fatalf("%q became %+v, which cannot be read again: %s", b, got[0], why)
		}
		if !strings.Contains(string(b), got[0].Routes()[0].Key) {
			t.Fatalf("%q became an event of %q", b, got[0].Routes()[0].Key)
		}
	}
	t.Logf("10,000 lines: %d events, refused %v", events, counts)
	if events > 9000 || counts[mqtt.CountRefusedLine] == 0 || counts[mqtt.CountAmbiguous] == 0 {
		t.Errorf("%d events, refused %v", events, counts)
	}
}

func FuzzMosquitto(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "mosquitto-2.0.11.lines"))
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		p := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 4)
		f.Add(p[0], []byte(p[3]))
	}
	d := mosquitto(f)
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		events, err := d.Decode(mqtt.Packet{Topic: topic, Payload: payload})
		if err != nil {
			if _, ok := errors.AsType[*mqtt.Refusal](err); !ok || len(events) > 0 {
				t.Fatalf("%v, %v", events, err)
			}
			return
		}
		for _, e := range events {
			if why := readable(e); why != "" {
				t.Fatalf("%+v cannot be read again: %s", e, why)
			}
		}
	})
}
