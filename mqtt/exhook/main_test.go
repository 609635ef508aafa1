package exhook_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// receipt is a receipt that a test completes.
type receipt struct {
	done chan struct{}
	err  error
}

func held() *receipt { return &receipt{done: make(chan struct{})} }

func durable(err error) *receipt {
	r := &receipt{done: make(chan struct{}), err: err}
	close(r.done)
	return r
}

func (r *receipt) Done() <-chan struct{} { return r.done }
func (r *receipt) Err() error            { return r.err }

// journal stands for the log: it takes events, and judges each as a test wishes; nil = durable at once.
type journal struct {
	judge func(ctx context.Context, e event.Event) (pipeline.Receipt, error)

	mu     sync.Mutex
	events []event.Event
}

func (j *journal) accept(ctx context.Context, e event.Event) (pipeline.Receipt, error) {
	var r pipeline.Receipt = durable(nil)
	if j.judge != nil {
		var err error
		if r, err = j.judge(ctx, e); err != nil {
			return nil, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	return r, nil
}

func (j *journal) taken() []event.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]event.Event(nil), j.events...)
}

// tally counts what a server counts and keeps what it logs.
type tally struct {
	mu     sync.Mutex
	counts map[mqtt.Counter]int
	logs   bytes.Buffer
}

func (t *tally) count(c mqtt.Counter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[c]++
}

func (t *tally) all() map[mqtt.Counter]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

func (t *tally) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.logs.Write(p)
}

func (t *tally) log() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.logs.String()
}

// hooked is a server that runs, with all that a test watches.
type hooked struct {
	*exhook.Server
	tally *tally
	stop  func() // asks it to end
	ended chan error
}

// serve runs a server until the test ends.
func serve(t *testing.T, cfg exhook.Config, j *journal) *hooked {
	t.Helper()
	h := &hooked{tally: &tally{counts: map[mqtt.Counter]int{}}, ended: make(chan error, 1)}
	cfg.Listen, cfg.Source = "127.0.0.1:0", "restante/emqx"
	cfg.Count, cfg.Log = h.tally.count, slog.New(slog.NewJSONHandler(h.tally, nil))
	s, err := exhook.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	var wg sync.WaitGroup
	wg.Go(func() { h.ended <- s.Run(ctx, j.accept) })
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

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
