package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"syscall"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/restante/restante/fault"
)

// Probe connects once under the client id, and disconnects. Its error is what the broker, or the way to it, said first, and what to
// do about it.
func Probe(ctx context.Context, s Server, client string) error {
	u, err := s.Parse()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cm, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: u, TlsCfg: s.TLS, KeepAlive: 30, ConnectUsername: s.User, ConnectPassword: []byte(s.Password),
		CleanStartOnInitialConnection: true, ConnectTimeout: s.ConnectTimeout,
		OnConnectError: func(err error) { cancel(err) },
		ClientConfig:   paho.ClientConfig{ClientID: client},
	})
	if err != nil {
		return fmt.Errorf("connect to broker: %w", err)
	}
	err = cm.AwaitConnection(ctx)
	if err != nil {
		err = context.Cause(ctx)
		err = fmt.Errorf("connect to broker: %w: %s", err, advice(err, u))
	}
	cancel(nil)
	<-cm.Done()
	return err
}

// Secure reports whether the URL of a broker asks for TLS.
func Secure(u *url.URL) bool {
	return slices.Contains([]string{"mqtts", "tls", "ssl", "wss"}, u.Scheme)
}

// advice is what to do about a broker that cannot be reached or refuses.
func advice(err error, urls []*url.URL) string {
	if refused, ok := errors.AsType[*autopaho.ConnackError](err); ok && refused.ReasonCode != 0 {
		switch refused.ReasonCode {
		case packets.ConnackUnsupportedProtocolVersion:
			return "the broker does not speak MQTT 5: switch it on there, or name another broker"
		case packets.ConnackInvalidClientID:
			return "the broker does not take this client id: put client_prefix right in the config"
		case packets.ConnackBadUsernameOrPassword, packets.ConnackNotAuthorized, packets.ConnackBadAuthenticationMethod:
			return "put user and password right in the config, or allow this user and client id at the broker"
		}
		return fmt.Sprintf("the broker refused with reason code 0x%02x", refused.ReasonCode)
	}
	if a := fault.TLSAdvice(err, "tls"); a != "" {
		return a
	}
	cut := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
	if cut && slices.ContainsFunc(urls, Secure) {
		return "the broker cut the connection: it may want a certificate that it trusts, tls.cert_file and tls.key_file; look at its log"
	}
	if cut {
		return "the broker cut the connection: a port with TLS wants mqtts://; look at its log"
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return "start the broker, open the way to its port, or put the URL right in the config"
	}
	return "put the URL right in the config: a port with TLS wants mqtts://, one without mqtt://"
}
