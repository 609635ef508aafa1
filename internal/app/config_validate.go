package app

import (
	"fmt"
	"net"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// leave is what a process needs beside its drain before the group takes it for dead.
const leave = 5 * time.Second

// Validate returns all faults of the configuration as a [Faults], nil when there is none. What only one process needs is
// checked by [Config.For].
func (c Config) Validate() error {
	var faults Faults
	checkTags(reflect.ValueOf(c), "", &faults)
	c.checkKafka(&faults)
	for _, name := range sortedKeys(c.Sources) {
		path := "sources." + name
		checkName(path, name, &faults)
		c.Sources[name].check(path, &faults)
		if h := c.Sources[name].Webhook; h != nil {
			h.check(path, c.Ingest.MaxPayload, &faults)
		}
	}
	c.checkClientIDs(&faults)
	c.checkSinks(&faults)
	c.checkSpool(&faults)
	c.checkRules(&faults)
	c.checkDelivery(&faults)
	c.checkAPI(&faults)
	if d := c.Shutdown.Drain; d+leave >= c.Kafka.SessionTimeout {
		faults.add("shutdown.drain", "%s and %s more must be less than kafka.session_timeout (%s): no heartbeats are sent while a process drains",
			formatDuration(d), formatDuration(leave), formatDuration(c.Kafka.SessionTimeout))
	}
	if d := c.Shutdown.Drain; d >= c.Kafka.RebalanceTimeout {
		faults.add("shutdown.drain", "%s must be less than kafka.rebalance_timeout (%s)", formatDuration(d), formatDuration(c.Kafka.RebalanceTimeout))
	}
	if c.Admin.Listen != "" {
		checkListen("admin.listen", c.Admin.Listen, &faults)
	}
	return faults.oncePerOption().join()
}

// oncePerOption keeps the first fault of each option of a rule: the others follow from it.
func (f Faults) oncePerOption() Faults {
	seen := map[string]bool{}
	return slices.DeleteFunc(f, func(one *Fault) bool {
		if !strings.HasPrefix(one.Path, "rules[") || !strings.Contains(one.Path, ".") {
			return false
		}
		again := seen[one.Path]
		seen[one.Path] = true
		return again
	})
}

var (
	kafkaName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,170}$`)
	ownName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$`)
)

func checkName(path, name string, faults *Faults) {
	if !ownName.MatchString(name) {
		faults.add(path, "name %q: a name has up to 64 lower-case letters, digits, - and _, and begins and ends with a letter or digit", name)
	}
}

// checkKafkaName leaves room in Kafka's 249 characters for what we append.
func checkKafkaName(path, name string, faults *Faults) {
	if name != "" && !kafkaName.MatchString(name) {
		faults.add(path, "%q is no name for Kafka: letters, digits, '.', '_' and '-', at most 170", name)
	}
}

func (c Config) checkKafka(faults *Faults) {
	k := c.Kafka
	for i, b := range k.Brokers {
		checkHostPort(fmt.Sprintf("kafka.brokers[%d]", i), b, faults)
	}
	checkKafkaName("kafka.names.topics", k.Names.Topics, faults)
	checkKafkaName("kafka.names.groups", k.Names.Groups, faults)
	for _, kind := range []event.Kind{event.Messages, event.Sessions, event.Dead} {
		if t := k.Topic(kind); t.MinInsync > t.Replication {
			faults.add("kafka."+string(kind)+".min_insync", "%d is more than replication (%d): nothing could be written", t.MinInsync, t.Replication)
		}
	}
	if k.RebalanceTimeout > k.SessionTimeout*10 {
		faults.add("kafka.rebalance_timeout", "%s is more than ten times the session_timeout (%s)", formatDuration(k.RebalanceTimeout), formatDuration(k.SessionTimeout))
	}
	checkTLS("kafka.tls", k.TLS, faults)
	s := k.SASL
	checkLogin("kafka.sasl", s.User, s.Password, s.PasswordFile, faults)
	iam := s.Mechanism == mskIAM
	if !iam && s.Region != "" {
		faults.add("kafka.sasl.region", "is of use with mechanism %s alone", mskIAM)
	}
	switch {
	case iam && s.User != "":
		faults.add("kafka.sasl.user", "must be empty: %s takes credentials as AWS's tools do", mskIAM)
	case iam && !k.TLS.Enabled:
		faults.add("kafka.tls.enabled", "must be true: %s is spoken over TLS only", mskIAM)
	case iam:
	case s.Mechanism == "" && s.User != "":
		faults.add("kafka.sasl.mechanism", "is missing: plain, scram-sha-256 or scram-sha-512")
	case s.Mechanism != "" && s.User == "":
		faults.add("kafka.sasl.user", "is missing: %s needs a user", s.Mechanism)
	case s.Mechanism != "" && s.Password == "" && s.PasswordFile == "":
		faults.add("kafka.sasl.password", "is missing: give it, or password_file")
	}
}

func (s Source) check(path string, faults *Faults) {
	switch {
	case s.Embedded != nil:
		checkListen(path+".listen", s.Embedded.Listen, faults)
		s.Embedded.TLS.check(path+".tls", faults)
	case s.Exhook != nil:
		checkListen(path+".listen", s.Exhook.Listen, faults)
		s.Exhook.TLS.check(path+".tls", faults)
	case s.MQTT != nil:
		m := s.MQTT
		checkURLs(path+".url", m.URL, faults)
		checkTLS(path+".tls", m.TLS, faults)
		checkLogin(path, m.User, m.Password, m.PasswordFile, faults)
		for i, f := range m.Filters {
			if _, err := event.ParseFilter(f); err != nil {
				faults.add(fmt.Sprintf("%s.filters[%d]", path, i), "%s", err)
			}
		}
		if m.Decode == decodeLog && m.Connections > 1 {
			faults.add(path+".connections", "%d: the lines of Mosquitto's log must come in order, over one connection; for more add a source with decode: plain, and give this one the log only, filters: $SYS/broker/log/#", m.Connections)
		}
		if m.FetchTopic != "" {
			checkTemplate(path+".fetch_topic", m.FetchTopic, faults)
		}
		if _, err := event.ParseClientID(m.ClientPrefix); err != nil && m.ClientPrefix != "" {
			faults.add(path+".client_prefix", "%s", err)
		}
	}
}

// checkClientIDs: two sources with the same client ids at one broker would throw each other out for ever.
func (c Config) checkClientIDs(faults *Faults) {
	names := sortedKeys(c.Sources)
	for i, b := range names {
		for _, a := range names[:i] {
			x, y := c.Sources[a].MQTT, c.Sources[b].MQTT
			if x == nil || y == nil || x.ClientPrefix != y.ClientPrefix || x.Ordinal != y.Ordinal {
				continue
			}
			if slices.ContainsFunc(x.URL, func(u string) bool { return slices.Contains(y.URL, u) }) {
				faults.add("sources."+b+".client_prefix", "%q is that of source %s at the same broker, and so are the client ids: give it another, such as %q", y.ClientPrefix, a, y.ClientPrefix+b+"-")
			}
		}
	}
}

func (h WebhookSource) check(path string, payload Size, faults *Faults) {
	checkListen(path+".listen", h.Listen, faults)
	h.TLS.check(path+".tls", faults)
	if h.Path != "" && (h.Path[0] != '/' || strings.ContainsAny(h.Path, "?# ")) {
		faults.add(path+".path", "%q is no path: it begins with / and holds no ?, # or space", h.Path)
	}
	for _, s := range []struct {
		key   string
		value Secret
		file  string
	}{{"token", h.Token, h.TokenFile}, {"hmac_key", h.HMACKey, h.HMACFile}} {
		if s.value != "" && s.file != "" {
			faults.add(path+"."+s.key, "is given twice: remove it or %s_file", s.key)
		}
		if s.value != "" && len(s.value) < 16 {
			faults.add(path+"."+s.key, "is too short: 16 bytes or more")
		}
	}
	if least := h.room(payload); h.MaxBody > 0 && h.MaxBody < least {
		faults.add(path+".max_body", "%s has no room for a payload of ingest.max_payload (%s) in base64 and what surrounds it: %s or more", h.MaxBody, payload, least)
	}
}

func (t ListenTLS) check(path string, faults *Faults) {
	checkPair(path, "cert_file", t.CertFile, "key_file", t.KeyFile, faults)
	if t.Enabled && t.CertFile == "" {
		faults.add(path+".cert_file", "is missing: a server with TLS needs a certificate")
	}
}

// checkSpool: an event that begins an outage waits for after, then for the disk, and must be answered within the budget.
func (c Config) checkSpool(faults *Faults) {
	spool := c.Ingest.Spool
	if !spool.used() {
		return
	}
	for _, name := range sortedKeys(c.Sources) {
		if e := c.Sources[name].Exhook; e != nil && e.Budget < 2*spool.After {
			faults.add("ingest.spool.after", "%s must be at most half of sources.%s.budget (%s): a call that meets the beginning of an outage is answered after it",
				formatDuration(spool.After), name, formatDuration(e.Budget))
		}
	}
}

func (c Config) checkDelivery(faults *Faults) {
	d := c.Delivery
	checkURLs("delivery.mqtt.url", d.MQTT.URL, faults)
	checkTLS("delivery.mqtt.tls", d.MQTT.TLS, faults)
	checkLogin("delivery.mqtt", d.MQTT.User, d.MQTT.Password, d.MQTT.PasswordFile, faults)
	if d.Secret != "" && d.SecretFile != "" {
		faults.add("delivery.secret", "is given twice: remove it or secret_file")
	}
	if d.Secret != "" && len(d.Secret) < 16 {
		faults.add("delivery.secret", "is too short: 16 bytes or more")
	}
	if _, err := event.ParseClientID(d.MQTT.ClientPrefix); err != nil && d.MQTT.ClientPrefix != "" {
		faults.add("delivery.mqtt.client_prefix", "%s", err)
	}
	head, ok := strings.CutSuffix(d.Prefix, "/{topic}")
	switch {
	case d.Prefix == "":
	case !ok:
		faults.add("delivery.prefix", "%q must end with /{topic}", d.Prefix)
	default:
		checkTemplate("delivery.prefix", head, faults)
	}
	embedded := c.has(func(s Source) bool { return s.Embedded != nil })
	if d.To == "direct" && !embedded {
		faults.add("delivery.to", "direct needs a source of type embedded in the same process: use topic or prefix")
	}
	if d.AckTopic != "" {
		checkTemplate("delivery.ack_topic", d.AckTopic, faults)
	}
	switch {
	case d.Evidence == evidenceApp && d.To == "direct":
		faults.add("delivery.evidence", "app needs a replay that is published: with delivery to direct use broker")
	case d.Evidence == evidenceApp && len(c.Sources) > 0 && !c.has(Source.answers):
		faults.add("delivery.evidence", "app: no source hears the clients' answers on %s: add one of type mqtt with decode: plain or mosquitto", d.AckTopic)
	case d.Evidence != "broker" || len(c.Sources) == 0:
	case !c.sees(pipeline.MessageAcked):
		faults.add("delivery.evidence", "no source tells of acks, so that nothing would ever count as delivered: use puback")
	}
	if c.envelopes() && len(d.Secret) == 0 && d.SecretFile == "" {
		faults.add("delivery.secret", "is required with exhook: by it ingest knows the replays whose acks it maps; set secret or secret_file, or use puback as evidence")
	}
	if c.envelopes() && c.Replayer.QoS0Subscribe == string(pipeline.QoS0Once) {
		faults.add("replayer.qos0_subscribe", "once: with exhook and evidence broker the broker's PUBACK does not tell that it took a replay: use skip or repeat, or puback as evidence")
	}
	rules, _ := c.expand()
	for _, p := range rules {
		pubsub := p.Action == pipeline.OnMessageFetchForPubsub
		if d.To == "topic" && pubsub {
			faults.add("delivery.to", "topic reaches every subscriber, and rules[%d] replays for one (%s): use prefix or direct", p.index, p.Action)
			break
		}
	}
}

// checkTemplate checks a topic that holds {clientid} as one level.
func checkTemplate(path, text string, faults *Faults) {
	n := 0
	for level := range strings.SplitSeq(text, "/") {
		if level == "{clientid}" {
			n++
		}
	}
	topic := strings.ReplaceAll(text, "{clientid}", "x")
	if n != 1 || strings.ContainsAny(topic, "{}") {
		faults.add(path, "%q must hold {clientid} as exactly one level, and no other braces", text)
	} else if _, err := event.ParseTopic(topic); err != nil {
		faults.add(path, "%s", err)
	}
}

func checkURLs(path string, urls Addresses, faults *Faults) {
	for i, text := range urls {
		at := fmt.Sprintf("%s[%d]", path, i)
		u, err := url.Parse(text)
		switch {
		case err != nil:
			faults.add(at, "%q is no URL: write mqtt://host:1883 or mqtts://host:8883", clean(text))
		case !slices.Contains([]string{"mqtt", "tcp", "mqtts", "ssl", "tls"}, u.Scheme) || u.Hostname() == "":
			faults.add(at, "%q: write mqtt://host:1883 or mqtts://host:8883", u.Redacted())
		case u.User != nil:
			faults.add(at, "%q holds a login: write it into user and password_file", u.Redacted())
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
			faults.add(at, "%q: nothing may follow the port", u.Redacted())
		case u.Port() != "" && !isPort(u.Port()):
			faults.add(at, "%q: the port must be a number from 1 to 65535", u.Redacted())
		}
	}
}

// clean leaves out what may be a password.
func clean(text string) string {
	if at := strings.LastIndexByte(text, '@'); at >= 0 {
		return "…" + text[at:]
	}
	return text
}

func checkListen(path, addr string, faults *Faults) {
	if addr == "" {
		return
	}
	if _, port, err := net.SplitHostPort(addr); err != nil || port != "0" && !isPort(port) {
		faults.add(path, "%q is no address: write host:port, or :port for all interfaces", addr)
	}
}

func checkHostPort(path, addr string, faults *Faults) {
	if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || !isPort(port) {
		faults.add(path, "%q is no address: write host:port", addr)
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func checkTLS(path string, t TLS, faults *Faults) {
	checkPair(path, "cert_file", t.CertFile, "key_file", t.KeyFile, faults)
}

func checkPair(path, aKey, a, bKey, b string, faults *Faults) {
	switch {
	case a == "" && b != "":
		faults.add(path+"."+aKey, "is missing: it belongs to %s", bKey)
	case a != "" && b == "":
		faults.add(path+"."+bKey, "is missing: it belongs to %s", aKey)
	}
}

func checkLogin(path, user string, password Secret, file string, faults *Faults) {
	switch {
	case password != "" && file != "":
		faults.add(path+".password", "is given twice: remove it or password_file")
	case user == "" && (password != "" || file != ""):
		faults.add(path+".user", "is missing: a password was given")
	}
}
