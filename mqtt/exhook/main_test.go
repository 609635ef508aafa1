package exhook_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = sourcetest.Patience

// hooked is a server that runs, with all that a test watches.
type hooked struct {
	*exhook.Server
	tally *sourcetest.Tally
	stop  func() // asks it to end
	ended chan error
}

// serve runs a server until the test ends.
func serve(t *testing.T, cfg exhook.Config, j *sourcetest.Journal) *hooked {
	t.Helper()
	h := &hooked{tally: &sourcetest.Tally{}, ended: make(chan error, 1)}
	cfg.Listen, cfg.Source = "127.0.0.1:0", "restante/emqx"
	cfg.Count, cfg.Log = h.tally.Count, slog.New(slog.NewJSONHandler(h.tally, nil))
	s, err := exhook.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	var wg sync.WaitGroup
	wg.Go(func() { h.ended <- s.Run(ctx, j.Accept) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := <-h.ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return h
}

// raw is a codec that sends and receives bytes as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("no bytes")
	}
	return b, nil
}

func (raw) Unmarshal(data []byte, v any) error {
	p, ok := v.(*[]byte)
	if !ok {
		return errors.New("no bytes")
	}
	*p = append([]byte{}, data...)
	return nil
}

// broker calls a server as EMQX does.
type broker struct {
	t    *testing.T
	conn *grpc.ClientConn
}

func dial(t *testing.T, h *hooked, c *tls.Config) *broker {
	t.Helper()
	creds := insecure.NewCredentials()
	if c != nil {
		creds = credentials.NewTLS(c)
	}
	conn, err := grpc.NewClient(h.Addr().String(), grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return &broker{t, conn}
}

// call calls a hook of a service and returns the answer's bytes.
func (b *broker) call(service, hook string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return b.callIn(ctx, service, hook, request)
}

func (b *broker) callIn(ctx context.Context, service, hook string, request []byte) ([]byte, error) {
	var answer []byte
	err := b.conn.Invoke(ctx, "/"+service+"/"+hook, request, &answer)
	return answer, err
}

func (b *broker) mustCall(hook string, request []byte) []byte {
	b.t.Helper()
	answer, err := b.call(exhook.Services[0], hook, request)
	if err != nil {
		b.t.Fatalf("%s: %v", hook, err)
	}
	return answer
}
