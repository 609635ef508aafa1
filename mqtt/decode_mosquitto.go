package mqtt

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/restante/restante/event"
)

// mosquittoLog is where Mosquitto publishes the lines of its log. No client may publish there.
const mosquittoLog = "$SYS/broker/log/"

// mosquittoLine is how many bytes of a line Mosquitto keeps: what is as long may have been cut off, in a filter too.
const mosquittoLine = 999

// MosquittoLogFilters are the parts of the log that [Mosquitto] reads.
var MosquittoLogFilters = []string{mosquittoLog + "M/#", mosquittoLog + "N"}

// Mosquitto decodes what Mosquitto 2 tells: the lines of its log, with log_dest topic, are subscribes, unsubscribes, connects and
// disconnects; all else is as [Plain] has it. Make it with [NewMosquitto].
//
// The lines are made for people. A client id or a filter that holds spaces can make one ambiguous: then what was told of clients
// before decides, and where it does not the line is counted and dropped. Lines must begin with the seconds since the epoch, as by
// default (log_timestamp true, no log_timestamp_format).
type Mosquitto struct {
	plain Plain
	own   func(event.ClientID) bool

	mu    sync.Mutex
	known map[string]map[string]bool // clients that have connected, with the filters that they have subscribed
	size  int                        // of known
}

var _ Decoder = (*Mosquitto)(nil)

// NewMosquitto makes a decoder. own tells the clients of our own connections; nil = none. It is safe for concurrent use, but lines
// must come in order.
func NewMosquitto(plain Plain, own func(event.ClientID) bool) *Mosquitto {
	return &Mosquitto{plain: plain, own: own, known: map[string]map[string]bool{}}
}

// Decode makes one event, or refuses.
func (d *Mosquitto) Decode(p Packet) ([]event.Event, error) {
	part, ok := strings.CutPrefix(p.Topic, mosquittoLog)
	if !ok {
		return d.plain.Decode(p)
	}
	if part != "N" && part != "M/subscribe" && part != "M/unsubscribe" {
		return nil, &Refusal{CountIgnored, errIgnored}
	}
	stamp, text, ok := strings.Cut(string(p.Payload), ": ")
	if !ok || len(stamp) > 12 || stamp == "" || strings.Trim(stamp, "0123456789") != "" {
		return nil, &Refusal{CountRefusedLine, fmt.Errorf("line %.80q of the log does not begin with seconds: set log_timestamp true, and no log_timestamp_format", p.Payload)}
	}
	if !utf8.ValidString(text) {
		return nil, &Refusal{CountRefusedLine, fmt.Errorf("line %.120q of the log is not UTF-8", text)}
	}
	if len(p.Payload) >= mosquittoLine {
		return nil, &Refusal{CountRefusedLine, fmt.Errorf("line %.80q… of the log is cut off: client id and filter are too long for it", p.Payload)}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e, err := d.line(part, text)
	if err != nil {
		return nil, err
	}
	return []event.Event{e}, nil
}

// spoken is one way to read a line.
type spoken struct {
	client string
	rest   string // the filter, or what became of the client
	qos    event.QoS
	user   string
	clean  bool
}

func (d *Mosquitto) line(part, text string) (event.Event, error) {
	var ways []spoken
	switch {
	case part == "M/subscribe":
		ways = subscribes(text)
	case part == "M/unsubscribe":
		ways = d.unsubscribes(text)
	case strings.HasPrefix(text, connectedLine):
		part, ways = "connected", connects(text)
	default:
		if part, ways = "disconnected", d.disconnects(text); len(ways) == 0 {
			return nil, &Refusal{CountIgnored, errIgnored} // of nobody who was connected
		}
	}
	s, err := d.choose(part, text, ways)
	if err != nil {
		return nil, err
	}
	client, err := event.ParseClientID(s.client)
	switch {
	case err != nil:
		return nil, &Refusal{CountRefusedClient, err}
	case d.own != nil && d.own(client):
		return nil, &Refusal{CountOwnEvent, ErrOwn}
	}
	return d.event(part, client, s)
}

// choose takes the one way to read a line. Of several, the client that is known decides; of a subscribe by unknown clients the last
// is taken, since spaces in client ids are more likely than in filters.
func (d *Mosquitto) choose(part, text string, ways []spoken) (spoken, error) {
	switch len(ways) {
	case 0:
		return spoken{}, &Refusal{CountRefusedLine, fmt.Errorf("line %.120q of the log is not understood", text)}
	case 1:
		return ways[0], nil
	}
	var likely []spoken
	for _, s := range ways {
		if _, ok := d.known[s.client]; ok {
			likely = append(likely, s)
		}
	}
	if len(likely) == 0 && part == "M/subscribe" {
		likely = ways[len(ways)-1:]
	}
	if len(likely) != 1 {
		return spoken{}, &Refusal{CountAmbiguous, fmt.Errorf("line %.120q of the log can be read in %d ways", text, len(ways))}
	}
	return likely[0], nil
}

// event makes the event, and remembers who did what.
func (d *Mosquitto) event(part string, client event.ClientID, s spoken) (event.Event, error) {
	head := d.plain.head()
	switch part {
	case "connected":
		d.remember(s.client, "")
		return event.Connected{Head: head, Client: client, CleanStart: event.KnownBool(s.clean), ExpiryInterval: -1, Username: s.user}, nil
	case "disconnected":
		return event.Disconnected{Head: head, Client: client, Reason: s.rest, DisconnectedAt: head.At}, nil
	}
	f, err := event.ParseFilter(s.rest)
	if err != nil {
		return nil, &Refusal{CountRefusedFilter, err}
	}
	if part == "M/unsubscribe" {
		delete(d.known[s.client], s.rest)
		return event.Unsubscribed{Head: head, Client: client, Filter: f}, nil
	}
	d.remember(s.client, s.rest)
	return event.Subscribed{Head: head, Client: client, Filter: f, QoS: s.qos}, nil
}

// remember notes a client, and a filter of its when there is one. Once too much is known all is forgotten: then only lines that
// hold spaces are read less surely.
func (d *Mosquitto) remember(client, filter string) {
	const most = 64 << 20 // bytes, roughly
	if d.size > most {
		clear(d.known)
		d.size = 0
	}
	if d.known[client] == nil {
		d.known[client] = map[string]bool{}
		d.size += len(client) + 64
	}
	if filter != "" && !d.known[client][filter] {
		d.known[client][filter] = true
		d.size += len(filter) + 64
	}
}

// subscribes are the ways to read "<client> <qos> <filter>".
func subscribes(text string) (ways []spoken) {
	for i := 1; i+3 < len(text); i++ {
		if text[i] != ' ' || text[i+2] != ' ' || text[i+1] < '0' || text[i+1] > '2' {
			continue
		}
		if _, err := event.ParseFilter(text[i+3:]); err == nil {
			ways = append(ways, spoken{client: text[:i], qos: event.QoS(text[i+1] - '0'), rest: text[i+3:]})
		}
	}
	return ways
}

// unsubscribes are the ways to read "<client> <filter>": those with a subscription that is known, else all.
func (d *Mosquitto) unsubscribes(text string) (ways []spoken) {
	var subscribed []spoken
	for i := 1; i+1 < len(text); i++ {
		if text[i] != ' ' {
			continue
		}
		if _, err := event.ParseFilter(text[i+1:]); err != nil {
			continue
		}
		s := spoken{client: text[:i], rest: text[i+1:]}
		if ways = append(ways, s); d.known[s.client][s.rest] {
			subscribed = append(subscribed, s)
		}
	}
	if len(subscribed) > 0 {
		return subscribed
	}
	return ways
}

const connectedLine = "New client connected from "

var connectEnd = regexp.MustCompile(`(?s)^ \(p\d+, c([01]), k\d+(?:, u'(.*)')?\)\.$`)

// connects are the ways to read "New client connected from <address> as <client> (p…, c…, k…[, u'<user>'])".
func connects(text string) (ways []spoken) {
	_, rest, ok := strings.Cut(strings.TrimPrefix(text, connectedLine), " as ") // no address holds a space
	for i := 1; ok && i < len(rest); i++ {
		if !strings.HasPrefix(rest[i:], " (p") {
			continue
		}
		if m := connectEnd.FindStringSubmatch(rest[i:]); m != nil {
			ways = append(ways, spoken{client: rest[:i], clean: m[1] == "1", user: m[2]})
		}
	}
	return ways
}

// endings are what a line says of a client whose connection has ended, with the reason. One that "disconnected, not authorised" never
// had one, and may have used another's id.
var endings = []struct{ text, reason string }{
	{" disconnected.", "normal"},
	{" closed its connection.", "connection lost"},
	{" has exceeded timeout, disconnecting.", "keepalive timeout"},
	{" been disconnected by administrative action.", "administrative action"},
	{" disconnected due to ", ""},
	{" disconnected: ", ""},
}

// address is what later versions put behind the client id.
var address = regexp.MustCompile(` [\[(][^ ]*[\])]$`)

// disconnects are the ways to read "Client <client> …".
func (d *Mosquitto) disconnects(text string) (ways []spoken) {
	rest, ok := strings.CutPrefix(text, "Client ")
	if !ok || !strings.HasSuffix(rest, ".") {
		return nil
	}
	add := func(client, reason string) {
		if _, known := d.known[client]; !known {
			client = address.ReplaceAllString(client, "")
		}
		if client != "" && client != "<unknown>" {
			ways = append(ways, spoken{client: client, rest: reason})
		}
	}
	for _, e := range endings {
		if e.reason != "" {
			if client, ok := strings.CutSuffix(rest, e.text); ok {
				add(client, e.reason)
			}
			continue
		}
		for from := 0; ; {
			i := strings.Index(rest[from:], e.text)
			if i < 0 {
				break
			}
			from += i
			add(rest[:from], strings.TrimSuffix(rest[from+len(e.text):], "."))
			from++
		}
	}
	return ways
}
