package emqxapi_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/mqtt/emqxapi"
)

// answers is an API that has no client, or one with every name, and takes one login. It keeps what it was asked for.
type answers struct {
	known bool
	asked []string
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked = append(a.asked, r.Method+" "+r.URL.Path)
	key, secret, _ := r.BasicAuth()
	client, five := strings.CutPrefix(r.URL.Path, "/api/v5/clients/")
	_, four := strings.CutPrefix(r.URL.Path, "/api/v4/clients/")
	switch {
	case key != "key" || secret != "secret":
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"code":"BAD_API_KEY_OR_SECRET","message":"Check api_key/api_secret"}`))
	case four && a.known:
		_, _ = w.Write([]byte(`{"code":0,"data":[{"clientid":"x"}]}`))
	case four:
		_, _ = w.Write([]byte(`{"code":0,"data":[]}`))
	case five && a.known:
		_, _ = fmt.Fprintf(w, `{"clientid":%q,"connected":true}`, client)
	case five:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"code":"CLIENTID_NOT_FOUND","message":"Client ID not found"}`))
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"code":"API_NOT_EXIST","message":"Request Path Not Found"}`))
	}
}

func TestProbeAsksForOneClientAndChangesNothing(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		for _, known := range []bool{false, true} {
			a := &answers{known: known}
			server := httptest.NewServer(a)
			if err := open(t, server.URL, version, nil).Probe(t.Context()); err != nil {
				t.Errorf("known %v: %v", known, err)
			}
			server.Close()
			if diff := cmp.Diff([]string{fmt.Sprintf("GET /api/v%d/clients/restante-check", version)}, a.asked); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
		}
	})
}

// TestProbeSaysWhatToDo: whatever stands between us and an EMQX that lets us in.
func TestProbeSaysWhatToDo(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, version int) {
		api := httptest.NewServer(&answers{})
		defer api.Close()
		secure := httptest.NewUnstartedServer(&answers{})
		secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		secure.StartTLS()
		defer secure.Close()
		private := httptest.NewUnstartedServer(&answers{})
		private.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		private.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
		private.StartTLS()
		defer private.Close()
		trusting := func(name string) func(*emqxapi.Config) {
			roots := x509.NewCertPool()
			roots.AddCert(secure.Certificate())
			return func(c *emqxapi.Config) {
				c.TLS = &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12}
			}
		}
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = silent.Close() }()
		says := func(status int, body string) string {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if status == http.StatusFound {
					w.Header().Set("Location", api.URL)
				}
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
			}))
			t.Cleanup(s.Close)
			return s.URL
		}
		otherPath := fmt.Sprintf("/api/v%d/clients", version)
		for name, c := range map[string]struct {
			url    string
			change func(*emqxapi.Config)
			want   string
		}{
			"in order":                {api.URL, nil, ""},
			"in order, by TLS":        {secure.URL, trusting(""), ""},
			"the wrong key":           {api.URL, func(c *emqxapi.Config) { c.Key = "other" }, `HTTP 401 for the key "other": put delivery.api.key and its secret right`},
			"the wrong secret":        {api.URL, func(c *emqxapi.Config) { c.Secret = "s3cr3t" }, "put delivery.api.key and its secret right"},
			"forbidden":               {says(403, `{"code":"API_KEY_NOT_ALLOW"}`), nil, "put delivery.api.key"},
			"a path too many":         {api.URL + "/api", nil, "HTTP 404 for " + otherPath},
			"another server":          {says(404, "<html>"), nil, "put delivery.api.url right"},
			"another server, glad":    {says(200, "<html>"), nil, "is not of EMQX"},
			"another server, in JSON": {says(200, `{"status":"ok"}`), nil, "is not of EMQX"},
			"elsewhere":               {says(302, ""), nil, "HTTP 302"},
			"not ready":               {says(503, "<html>"), nil, "HTTP 503: it is not ready"},
			"nobody there":            {"http://" + ports.Addr(t), nil, "connection refused: start EMQX"},
			"no such host":            {"http://no-such-host.invalid:18083", nil, "delivery.api.url right"},
			"no answer":               {"http://" + silent.Addr().String(), func(c *emqxapi.Config) { c.Timeout = 50 * time.Millisecond }, "open the way to its port"},
			"HTTP to a port with TLS": {"http://" + strings.TrimPrefix(secure.URL, "https://"), nil, "wants https://"},
			"TLS to a port without":   {"https://" + strings.TrimPrefix(api.URL, "http://"), nil, "write http://"},
			"an unknown authority":    {secure.URL, nil, "delivery.api.tls.ca_file"},
			"another name":            {secure.URL, trusting("elsewhere.test"), "delivery.api.tls.server_name"},
			"a client certificate":    {private.URL, trusting(""), "delivery.api.tls.cert_file"},
		} {
			err := open(t, c.url, version, c.change).Probe(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s: %v, want %q in it", name, err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") || err != nil && strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%s: %q", name, err)
			}
		}
	})
}
