package app

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/restante/restante/internal/certtest"
)

func TestUnreadableSecretFilesAreAllReported(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty, short := filepath.Join(dir, "empty"), filepath.Join(dir, "short")
	for file, text := range map[string]string{empty: "\n", short: "short\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := example()
	c.Kafka.SASL.PasswordFile = filepath.Join(dir, "none")
	c.Sources["plant"].MQTT.PasswordFile = empty
	c.Delivery.SecretFile = short
	_, err := c.WithSecrets()
	for _, want := range []string{
		"kafka.sasl.password_file: open ", "sources.plant.password_file: file " + empty + " is empty",
		"delivery.secret_file: ", "16",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	if c.Sources["plant"].MQTT.PasswordFile != empty {
		t.Error("the configuration itself was changed")
	}
}

func TestTLSOfBothSidesFits(t *testing.T) {
	t.Parallel()
	authority := certtest.NewAuthority(t)
	pair := authority.Issue(t, "localhost")
	server, err := ListenTLS{Enabled: true, CertFile: pair.Cert, KeyFile: pair.Key, ClientCAFile: authority.File}.Config()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	shake := func(client *tls.Config) error {
		done := make(chan error, 1)
		go func() { // ends with the connection
			c, err := l.Accept()
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_, err = c.Write([]byte("hi"))
				_ = c.Close()
			}
			done <- err
		}()
		d := tls.Dialer{Config: client, NetDialer: &net.Dialer{Timeout: time.Minute}}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			_, err = io.ReadFull(c, make([]byte, 2))
			_ = c.Close()
		}
		return errors.Join(err, <-done)
	}
	client, err := TLS{CAFile: authority.File, CertFile: pair.Cert, KeyFile: pair.Key, ServerName: "localhost"}.Config(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := shake(client); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	stranger, err := TLS{Enabled: true, CAFile: authority.File, ServerName: "localhost"}.Config(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := shake(stranger); err == nil {
		t.Error("a client without a certificate was let in")
	}
	other, err := TLS{Enabled: true, CAFile: authority.File, CertFile: pair.Cert, KeyFile: pair.Key, ServerName: "elsewhere"}.Config(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := shake(other); err == nil {
		t.Error("the name of the server was not checked")
	}
}

func TestBadTLSFilesAreExplained(t *testing.T) {
	t.Parallel()
	none := filepath.Join(t.TempDir(), "none.pem")
	junk := writeFile(t, "no certificate")
	for name, tt := range map[string]struct {
		config func() (*tls.Config, error)
		want   string
	}{
		"no authorities":   {func() (*tls.Config, error) { return TLS{Enabled: true, CAFile: none}.Config(false) }, "read authorities: open "},
		"junk":             {func() (*tls.Config, error) { return TLS{Enabled: true, CAFile: junk}.Config(false) }, "holds no PEM certificate"},
		"no certificate":   {func() (*tls.Config, error) { return TLS{Enabled: true, CertFile: none, KeyFile: none}.Config(false) }, "read client certificate: open "},
		"server's":         {func() (*tls.Config, error) { return ListenTLS{Enabled: true, CertFile: none, KeyFile: none}.Config() }, "read server certificate: open "},
		"off is no config": {func() (*tls.Config, error) { return TLS{CAFile: none}.Config(false) }, ""},
	} {
		c, err := tt.config()
		if tt.want == "" && (c != nil || err != nil) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, %v; want %q", name, c, err, tt.want)
		}
	}
}
