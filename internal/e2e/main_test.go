// Package e2e tests ingest, writer and replayer as processes of their own: started, stopped and killed, over TCP.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/internal/app/up"
	"github.com/restante/restante/internal/e2e/e2etest"
	"github.com/restante/restante/internal/stack"
	"github.com/restante/restante/sinks"
)

// The commands that the test binary can be. The first three are those of cmd/ingest, cmd/writer and cmd/replayer.
func TestMain(m *testing.M) {
	e2etest.Main(e2etest.RemoveBuilt{M: stack.Main(m)}, map[string]func() int{
		"ingest":      func() int { return app.Main(app.ProcessIngest, app.RunIngest) },
		"writer":      func() int { return app.Main(app.ProcessWriter, app.RunWriter) },
		"replayer":    func() int { return app.Main(app.ProcessReplayer, app.RunReplayer) },
		"slow writer": func() int { return app.Main(app.ProcessWriter, runSlowWriter) },
		"slow reader": func() int { return app.Main(app.ProcessReplayer, runSlowReader) },
		"up":          runUp,
	})
}

// slowStore takes two seconds for each batch, and for one with a message on heldTopic as long as it may.
type slowStore struct{ sinks.Store }

const heldTopic = "t/last"

const slowness = 2 * time.Second

func (s slowStore) Apply(ctx context.Context, ops []sinks.Op) error {
	for _, op := range ops {
		if put, ok := op.(sinks.PutMessage); ok && put.Topic.String() == heldTopic {
			_, _ = fmt.Fprintln(os.Stderr, "holding "+heldTopic) // the test waits for it
			<-ctx.Done()
			return context.Cause(ctx)
		}
	}
	select {
	case <-time.After(slowness):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.Store.Apply(ctx, ops)
}

// runSlowWriter is app.RunWriter on slow stores.
func runSlowWriter(ctx, work context.Context, p *app.Process) error {
	w, err := app.NewWire(ctx, p, p.Sinks)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.ReadyKafka(ctx); err != nil {
		return err
	}
	for name, store := range w.Stores {
		w.Stores[name] = slowStore{store}
	}
	return w.Write(ctx, work)
}

// slowReader takes a while for each read of messages.
type slowReader struct{ sinks.Store }

func (s slowReader) Messages(ctx context.Context, q sinks.Query) ([]sinks.Message, error) {
	select {
	case <-time.After(slowness / 10):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return s.Store.Messages(ctx, q)
}

// runSlowReader is app.RunReplayer on stores that are slow to read.
func runSlowReader(ctx, work context.Context, p *app.Process) error {
	w, err := app.NewWire(ctx, p, p.Sinks)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.ReadyKafka(ctx); err != nil {
		return err
	}
	for name, store := range w.Stores {
		w.Stores[name] = slowReader{store}
	}
	pub, err := w.Publisher()
	if err != nil {
		return err
	}
	return w.Replay(ctx, work, pub, pub.Run)
}

// runUp is restante up on a directory and the addresses of MQTT, Kafka and admin server.
func runUp() int {
	dir, broker, kafka, admin := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	c := up.Defaults(app.Default(), dir, broker)
	c.Admin.Listen = admin
	return app.Serve(app.ProcessUp, c, c.UsedSinks(), os.Stderr, signals, func(ctx, work context.Context, p *app.Process) error {
		return up.Run(ctx, work, p, up.Options{Dir: dir, Kafka: kafka}, nil)
	})
}
