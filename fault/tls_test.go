package fault_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/certtest"
)

// shake is what a client and a server on two ends of a real connection say of their handshake and the first byte after it.
func shake(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan struct{})
	go func() { // ends with the connection
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		if server == nil {
			_, _ = c.Write([]byte("not TLS at all"))
			return
		}
		s := tls.Server(c, server)
		if s.HandshakeContext(context.Background()) == nil {
			_, _ = s.Write([]byte{1})
		}
	}()
	defer func() { <-done }()
	c, err := (&tls.Dialer{Config: client}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

func TestTLSAdviceNamesTheKeyToPutRight(t *testing.T) {
	t.Parallel()
	trusted, unknown := certtest.NewAuthority(t), certtest.NewAuthority(t)
	load := func(p certtest.Pair) []tls.Certificate { return []tls.Certificate{p.Load(t)} }
	server := &tls.Config{
		Certificates: load(trusted.Issue(t, "localhost", "127.0.0.1")), ClientCAs: trusted.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS12,
	}
	client, stranger := load(trusted.Issue(t, "client")), load(unknown.Issue(t, "client"))
	for name, c := range map[string]struct {
		client *tls.Config
		server *tls.Config
		want   string
	}{
		"all is right":   {&tls.Config{RootCAs: trusted.Pool(), Certificates: client}, server, ""},
		"authority":      {&tls.Config{RootCAs: unknown.Pool(), Certificates: client}, server, "authority that signed the server's certificate into kafka.tls.ca_file"},
		"name":           {&tls.Config{RootCAs: trusted.Pool(), Certificates: client, ServerName: "elsewhere"}, server, "kafka.tls.server_name right"},
		"no certificate": {&tls.Config{RootCAs: trusted.Pool()}, server, "put kafka.tls.cert_file and kafka.tls.key_file right"},
		"stranger":       {&tls.Config{RootCAs: trusted.Pool(), Certificates: stranger}, server, "put kafka.tls.cert_file and kafka.tls.key_file right"},
		"no TLS":         {&tls.Config{RootCAs: trusted.Pool()}, nil, "the port is one without TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.client.MinVersion = tls.VersionTLS12
			err := shake(t, c.client, c.server)
			if (err == nil) != (c.want == "") {
				t.Fatalf("got %v", err)
			}
			got := fault.TLSAdvice(err, "kafka.tls")
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("for %v got %q, want %q", err, got, c.want)
			}
			if err != nil && fault.TLSAdvice(errors.New(err.Error()), "x") != "" && !strings.Contains(err.Error(), "remote error") {
				t.Errorf("advice on the text alone of %v", err)
			}
		})
	}
	if got := fault.TLSAdvice(io.EOF, "x") + fault.TLSAdvice(nil, "x"); got != "" {
		t.Errorf("got %q for what is no matter of TLS", got)
	}
}
