package webhook

import (
	"context"
	"net/http"

	"github.com/restante/restante/pipeline"
)

// Handler answers requests without a network between, as a server that runs does.
func (s *Server) Handler(accept pipeline.Accept) http.Handler {
	_ = s.listener.Close() // nobody shall come in by it
	s.accept, s.work = accept, context.Background()
	return http.HandlerFunc(s.serve)
}
