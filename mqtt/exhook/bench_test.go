package exhook_test

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/restante/restante/mqtt/exhook"
	"github.com/restante/restante/mqtt/sourcetest"
)

// BenchmarkPublish is one publish over loopback, one call at a time, with p50 and p99 in µs: by a server that only answers, and by
// ours with a log that is durable at once. Their difference is what the decoding and the order of things cost.
func BenchmarkPublish(b *testing.B) {
	request := publish(b, "pub", "t/1")
	b.Run("answers-only", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		g := grpc.NewServer(grpc.ForceServerCodec(raw{}))
		g.RegisterService(&grpc.ServiceDesc{
			ServiceName: exhook.Services[0], HandlerType: (*any)(nil),
			Methods: []grpc.MethodDesc{{
				MethodName: "OnMessagePublish",
				Handler: func(_ any, _ context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
					var in []byte
					return []byte{1 << 3, 1}, read(&in)
				},
			}},
		}, struct{}{})
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.Serve(l) })
		defer wg.Wait()
		defer g.Stop()
		measure(b, l.Addr().String(), request)
	})
	b.Run("exhook", func(b *testing.B) {
		s, err := exhook.Open(exhook.Config{Listen: "127.0.0.1:0", Source: "restante/emqx"})
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Run(ctx, (&sourcetest.Journal{}).Accept); err != nil {
				b.Error(err)
			}
		})
		defer wg.Wait()
		defer stop()
		measure(b, s.Addr().String(), request)
	})
}

func measure(b *testing.B, addr string, request []byte) {
	b.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the run is over
	var took []time.Duration
	for b.Loop() {
		var answer []byte
		before := time.Now()
		if err := conn.Invoke(context.Background(), "/"+exhook.Services[0]+"/OnMessagePublish", request, &answer); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(before))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}
