// Package emqxapi has EMQX subscribe clients to topics, through its HTTP API: that of 4.3 and 4.4, and that of 5 and later.
package emqxapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/sinks"
)

// Config says where the API is and how to log in.
type Config struct {
	// URL is the address without /api, such as http://emqx:18083.
	URL string
	// Version is EMQX's: 4 or 5; later ones have the API of 5.
	Version int
	// Key and Secret are those of an API key, in version 4 of an application.
	Key, Secret string
	TLS         *tls.Config   // nil = the system's authorities
	Timeout     time.Duration // of one request
	Log         *slog.Logger
}

// Client calls the API. It is safe for concurrent use.
type Client struct {
	cfg  Config
	base string
	http *http.Client
}

var _ pipeline.Resubscriber = (*Client)(nil)

// most is how many subscriptions one request of version 4 holds, and mostAnswer how many bytes of an answer are read.
const (
	most       = 100
	mostAnswer = 1 << 20
)

// New makes a client. It connects with the first call.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("emqx api: url: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("emqx api: url %q: want http://host:port or https://host:port", u.Redacted())
	case cfg.Version != 4 && cfg.Version != 5:
		return nil, fmt.Errorf("emqx api: version %d: want 4 or 5", cfg.Version)
	case cfg.Timeout <= 0 || cfg.Log == nil:
		return nil, errors.New("emqx api: timeout and log are needed")
	}
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // what it is
	t.TLSClientConfig = cfg.TLS
	t.MaxIdleConnsPerHost = 32
	c := &Client{cfg: cfg, base: strings.TrimRight(cfg.URL, "/"), http: &http.Client{
		Transport: t, Timeout: cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the login is for one server
	}}
	return c, nil
}

// Close gives the idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Resubscribe implements [pipeline.Resubscriber].
func (c *Client) Resubscribe(ctx context.Context, client event.ClientID, subs []sinks.Sub) (pipeline.Resubscribed, error) {
	if c.cfg.Version == 4 {
		return c.four(ctx, client, subs)
	}
	return c.five(ctx, client, subs)
}

// five asks for one subscription at a time: the call for many finds only clients of the node that is called, in earlier versions
// of 5, and does not say in one way which of them it did not make.
func (c *Client) five(ctx context.Context, client event.ClientID, subs []sinks.Sub) (res pipeline.Resubscribed, err error) {
	path := "/api/v5/clients/" + url.PathEscape(string(client)) + "/subscribe"
	for _, s := range subs {
		status, body, err := c.post(ctx, path, map[string]any{"topic": s.Filter.String(), "qos": s.QoS})
		if err != nil {
			return res, err
		}
		var answer struct {
			Code any `json:"code"`
		}
		if len(bytes.TrimSpace(body)) > 0 {
			err := json.Unmarshal(body, &answer)
			if err != nil && (status/100 == 2 || status == http.StatusNotFound) {
				return res, fmt.Errorf("subscribe %q at %s: answer %d is not of EMQX: check delivery.api.url", client, c.base, status)
			}
		}
		switch {
		case status == http.StatusOK, status == http.StatusCreated, status == http.StatusNoContent:
		case status == http.StatusNotFound && noClient(answer.Code):
			res.Gone = true
			return res, nil
		case status == http.StatusBadRequest:
			c.refused(ctx, client, s.Filter, answer.Code)
			res.Refused++
		default:
			return res, c.fault(status, answer.Code)
		}
	}
	return res, nil
}

// The result codes of version 4.
const (
	codeDone     = 0
	codeGone     = 112 // no such client
	codeBadTopic = 115
)

// four asks for many at once; each has a result code of its own.
func (c *Client) four(ctx context.Context, client event.ClientID, subs []sinks.Sub) (res pipeline.Resubscribed, err error) {
	type entry struct {
		Topic  string    `json:"topic"`
		QoS    event.QoS `json:"qos"`
		Client string    `json:"clientid"`
	}
	var all []entry
	for _, s := range subs {
		if strings.Contains(s.Filter.String(), ",") { // it is a list of topics to this API
			c.refused(ctx, client, s.Filter, "it holds a comma")
			res.Refused++
			continue
		}
		all = append(all, entry{s.Filter.String(), s.QoS, string(client)})
	}
	for len(all) > 0 {
		part := all[:min(most, len(all))]
		all = all[len(part):]
		status, body, err := c.post(ctx, "/api/v4/mqtt/subscribe_batch", part)
		if err != nil {
			return res, err
		}
		var answer struct {
			Code *int `json:"code"`
			Data []struct {
				Code *int `json:"code"`
			} `json:"data"`
		}
		if status != http.StatusOK {
			return res, c.fault(status, nil)
		}
		if err := json.Unmarshal(body, &answer); err != nil || answer.Code == nil {
			return res, fmt.Errorf("subscribe %q at %s: answer %d is not of EMQX: check delivery.api.url", client, c.base, status)
		}
		if *answer.Code != codeDone || len(answer.Data) != len(part) {
			return res, fmt.Errorf("subscribe %q at %s: code %d with %d results for %d subscriptions", client, c.base, *answer.Code, len(answer.Data), len(part))
		}
		for i, d := range answer.Data {
			switch {
			case d.Code == nil:
				return res, fmt.Errorf("subscribe %q at %s: a result has no code", client, c.base)
			case *d.Code == codeDone:
			case *d.Code == codeGone:
				res.Gone = true
				return res, nil
			case *d.Code == codeBadTopic:
				f, _ := event.ParseFilter(part[i].Topic)
				c.refused(ctx, client, f, codeBadTopic)
				res.Refused++
			default:
				return res, fmt.Errorf("subscribe %q at %s: code %d", client, c.base, *d.Code)
			}
		}
	}
	return res, nil
}

// post returns the answer, whatever it says.
func (c *Client) post(ctx context.Context, path string, what any) (int, []byte, error) {
	body, err := json.Marshal(what)
	if err != nil {
		return 0, nil, fmt.Errorf("emqx api: %w", err)
	}
	return c.ask(ctx, http.MethodPost, path, bytes.NewReader(body))
}

func (c *Client) ask(ctx context.Context, method, path string, body io.Reader) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return 0, nil, fmt.Errorf("emqx api: %w", err)
	}
	req.SetBasicAuth(c.cfg.Key, c.cfg.Secret)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("emqx api: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	out, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer of %s: %w", c.base, err)
	}
	return resp.StatusCode, out, nil
}

// fault is an answer that may be another one later.
func (c *Client) fault(status int, code any) error {
	advice := ""
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		advice = ": check delivery.api.key and its secret, and that the key may subscribe clients"
	case status == http.StatusNotFound, status/100 == 3:
		advice = ": check delivery.api.url and version"
	}
	if code != nil {
		return fmt.Errorf("subscribe at %s: HTTP %d, %v%s", c.base, status, code, advice)
	}
	return fmt.Errorf("subscribe at %s: HTTP %d%s", c.base, status, advice)
}

func (c *Client) refused(ctx context.Context, client event.ClientID, f event.Filter, why any) {
	c.cfg.Log.WarnContext(ctx, "stored subscription refused by the broker", "clientid", string(client), "filter", f.String(), "why", why)
}
