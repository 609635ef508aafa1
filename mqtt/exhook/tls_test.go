package exhook_test

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/restante/restante/internal/certtest"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
)

func TestTLSDemandsTheClientsCertificate(t *testing.T) {
	t.Parallel()
	serverCert, serverPool := certtest.Certificate(t)
	clientCert, clientPool := certtest.Certificate(t)
	stranger, _ := certtest.Certificate(t)
	j := &sourcetest.Journal{}
	h := serve(t, exhook.Config{TLS: &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{serverCert}, ClientCAs: clientPool, ClientAuth: tls.RequireAndVerifyClientCert,
	}}, j)
	client := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: serverPool, Certificates: certs}
	}
	dial(t, h, client(clientCert)).mustCall("OnMessagePublish", publish(t, "pub", "t/1"))
	for name, c := range map[string]*tls.Config{"no certificate": client(), "a stranger's": client(stranger), "no TLS": nil} {
		if _, err := dial(t, h, c).call(exhook.Services[0], "OnMessagePublish", publish(t, "pub", "t/1")); err == nil {
			t.Errorf("a call with %s was answered", name)
		}
	}
	if n := len(j.Events()); n != 1 {
		t.Errorf("took %d events, want 1", n)
	}
}

// Erlang's HTTP/2 clients may speak by prior knowledge and negotiate nothing.
func TestTLSNeedsNoNegotiation(t *testing.T) {
	t.Parallel()
	cert, pool := certtest.Certificate(t)
	h := serve(t, exhook.Config{TLS: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}}, &sourcetest.Journal{})
	conn, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}}).DialContext(t.Context(), "tcp", h.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	const emptySettings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + emptySettings)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 9)
	if _, err := conn.Read(head); err != nil || head[3] != 4 {
		t.Errorf("got frame % x (%v), want the server's settings", head, err)
	}
}
