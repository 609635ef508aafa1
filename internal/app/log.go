package app

import (
	"io"
	"log/slog"
)

// NewLogger writes JSON, one object a line, each with the component. The level is one of the configuration's; anything else
// counts as info.
func NewLogger(w io.Writer, component, level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})).With("component", component)
}
