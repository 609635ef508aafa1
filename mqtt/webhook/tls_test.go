package webhook_test

import (
	"crypto/tls"
	"net/http"
	"testing"

	"github.com/restante/restante/internal/certtest"
	"github.com/restante/restante/mqtt/sourcetest"
	"github.com/restante/restante/mqtt/webhook"
)

func TestTLSDemandsTheClientsCertificate(t *testing.T) {
	t.Parallel()
	serverCert, serverPool := certtest.Certificate(t)
	clientCert, clientPool := certtest.Certificate(t)
	stranger, _ := certtest.Certificate(t)
	j := &sourcetest.Journal{}
	s := serve(t, webhook.Config{TLS: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{serverCert}, ClientCAs: clientPool, ClientAuth: tls.RequireAndVerifyClientCert,
	}}, j)
	client := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: serverPool, Certificates: certs}
	}
	if r := s.with(client(clientCert)).post(publish(someID, "t/1")); r.status != http.StatusOK {
		t.Errorf("answered %d %s", r.status, r.body)
	}
	for name, c := range map[string]*tls.Config{"no certificate": client(), "a stranger's": client(stranger)} {
		if r := s.with(c).post(publish(someID, "t/1")); r.status != 0 {
			t.Errorf("a request with %s was answered %d", name, r.status)
		}
	}
	if n := j.Count(); n != 1 {
		t.Errorf("took %d events, want 1", n)
	}
}
