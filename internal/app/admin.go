package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminServer answers probes and scrapes. Make it with [StartAdmin].
type AdminServer struct {
	// Addr is where it listens.
	Addr net.Addr

	server *http.Server
	served chan error
}

// StartAdmin listens and serves until [AdminServer.Close].
func StartAdmin(ctx context.Context, c Admin, reg *prometheus.Registry, h *Health, log *slog.Logger) (*AdminServer, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", c.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("admin.listen: address %s is in use by another process: choose another port or stop that process", c.Listen)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("admin.listen: %s is not permitted: choose a port from 1024 on", c.Listen)
	case err != nil:
		return nil, fmt.Errorf("admin.listen: %w", err)
	}
	a := &AdminServer{
		Addr: l.Addr(),
		server: &http.Server{
			Handler:           adminHandler(c.PProf, reg, h, log),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      time.Minute, // a CPU profile takes 30 s
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
		served: make(chan error, 1),
	}
	go func() { a.served <- a.server.Serve(l) }() // ends with Close, which waits for it
	return a, nil
}

// Close stops the server and waits for it; requests under way have a second to end.
func (a *AdminServer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := a.server.Shutdown(ctx); err != nil {
		_ = a.server.Close() // what is still open is cut
	}
	if err := <-a.served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin: %w", err)
	}
	return nil
}

func adminHandler(profiles bool, reg *prometheus.Registry, h *Health, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /livez", report(h.Alive))
	mux.Handle("GET /readyz", report(h.Ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		Registry: reg, EnableOpenMetrics: true, MaxRequestsInFlight: 4, Timeout: 30 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError),
	}))
	if profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}
