package mqtt

import (
	"context"
	"errors"
	"fmt"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

// Probe connects once under the client id, and disconnects. Its error is what the broker, or the way to it, said first.
func Probe(ctx context.Context, s Server, client string) error {
	u, err := s.parse()
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
		err = fmt.Errorf("connect to broker: %w", errors.Join(context.Cause(ctx)))
	}
	cancel(nil)
	<-cm.Done()
	return err
}
