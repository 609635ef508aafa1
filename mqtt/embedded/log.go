package embedded

import (
	"context"
	"log/slog"

	mochi "github.com/mochi-mqtt/server/v2"
)

// quiet lets mochi's warnings and errors through, without the packets that it puts into them: a packet holds payloads and
// passwords. One warning is the only sign that mochi gives of a delivery that it drops.
type quiet struct {
	slog.Handler
	overflow func(client string)
}

// Enabled lets through what is a warning at least.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

// Handle passes a record on with the attributes that are safe.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	switch r.Message {
	case mochi.ErrMinimumKeepalive.Error():
		return nil
	case "client store quota reached", "packet ids exhausted":
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "client" {
				q.overflow(a.Value.String())
			}
			return true
		})
		return nil
	}
	safe := slog.NewRecord(r.Time, r.Level, "mochi: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "error", "client", "hook", "listener", "remote":
			safe.AddAttrs(a)
		}
		return true
	})
	return q.Handler.Handle(ctx, safe)
}

// WithAttrs drops the attributes: they name mochi's parts.
func (q quiet) WithAttrs([]slog.Attr) slog.Handler { return q }

// WithGroup drops the group.
func (q quiet) WithGroup(string) slog.Handler { return q }
