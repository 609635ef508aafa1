package app

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/restante/restante/pipeline"
)

// noLookup says why no client can be subscribed from outside; "" = it can.
func (c Config) noLookup() string {
	const what = string(pipeline.OnSubscribeLookup)
	emqx := c.has(Source.maybeEMQX)
	switch {
	case c.Delivery.To == "direct", c.Delivery.API.Type != "":
		return ""
	case c.has(func(s Source) bool { return s.Embedded != nil }):
		return what + ": the embedded broker subscribes clients only with delivery.to: direct, in the same process"
	case emqx, len(c.Sources) == 0:
		return what + ": needs EMQX's HTTP API to subscribe clients: set delivery.api"
	}
	var kinds []string
	for _, name := range sortedKeys(c.Sources) {
		kinds = append(kinds, fmt.Sprintf("%s (%s)", name, c.Sources[name].kind()))
	}
	return fmt.Sprintf("%s: the broker of source %s cannot be asked to subscribe a client: leave it out", what, strings.Join(kinds, ", "))
}

// maybeEMQX reports whether the source's broker can be an EMQX that tells of connections.
func (s Source) maybeEMQX() bool {
	return s.Exhook != nil || s.MQTT != nil && s.MQTT.Decode == decodeEMQX ||
		s.Webhook != nil && (s.Webhook.Format == formatRule || s.Webhook.Format == formatEMQX)
}

func (c Config) checkAPI(faults *Faults) {
	const path = "delivery.api"
	a := c.Delivery.API
	checkTLS(path+".tls", a.TLS, faults)
	if a.Secret != "" && a.SecretFile != "" {
		faults.add(path+".secret", "is given twice: remove it or secret_file")
	}
	if a.Type == "" {
		if a.URL != "" || a.Key != "" || a.Secret != "" || a.SecretFile != "" {
			faults.add(path+".type", "is missing: emqx")
		}
		return
	}
	if c.Delivery.To == "direct" {
		faults.add(path+".type", "means nothing with delivery.to: direct, where the embedded broker subscribes clients by itself")
	} else if len(c.Sources) > 0 && !c.has(Source.maybeEMQX) {
		faults.add(path+".type", "no source tells of the connections of an EMQX: remove it")
	}
	if u, err := url.Parse(a.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		faults.add(path+".url", "%q: write http://host:port or https://host:port", clean(a.URL))
	} else if strings.Contains(u.Path+"/", "/api/") {
		faults.add(path+".url", "%q: leave out /api and what follows", clean(a.URL))
	}
	if a.Key == "" {
		faults.add(path+".key", "is missing: the key that EMQX gave out")
	}
	if a.Secret == "" && a.SecretFile == "" {
		faults.add(path+".secret_file", "is missing: the secret of the key")
	}
}
