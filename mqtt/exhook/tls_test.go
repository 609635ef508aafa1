package exhook_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/restante/restante/mqtt/exhook"
)

// certificate makes one that vouches for itself, for a server on loopback and for a client.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestTLSDemandsTheClientsCertificate(t *testing.T) {
	t.Parallel()
	serverCert, serverPool := certificate(t)
	clientCert, clientPool := certificate(t)
	stranger, _ := certificate(t)
	j := &journal{}
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
	if n := len(j.taken()); n != 1 {
		t.Errorf("took %d events, want 1", n)
	}
}

// Erlang's HTTP/2 clients may speak by prior knowledge and negotiate nothing.
func TestTLSNeedsNoNegotiation(t *testing.T) {
	t.Parallel()
	cert, pool := certificate(t)
	h := serve(t, exhook.Config{TLS: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}}, &journal{})
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
