package webhook_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/restante/restante/mqtt/webhook"
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
	if n := j.count(); n != 1 {
		t.Errorf("took %d events, want 1", n)
	}
}
