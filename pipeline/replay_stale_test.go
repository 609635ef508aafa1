package pipeline_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/internal/sim/fakelog"
	"github.com/restante/restante/pipeline"
)

// TestAReplayThatHasHeardNothingForAWhileWaits: its client may have gone and come again meanwhile, and would get what it goes on to send
// ahead of what it waits for.
func TestAReplayThatHasHeardNothingForAWhileWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, 1)
		b := newBroker(s)
		deaf := make(chan struct{}, 1) // holds a token while no fetch of sessions is answered
		s.replayer(b, func(ctx context.Context, c fakelog.Call) fakelog.Verdict {
			for (c.Op == fakelog.OpFetch || c.Op == fakelog.OpFetched) && c.TP.Topic == topics.Sessions && len(deaf) > 0 && pipeline.Sleep(ctx, 10*time.Millisecond) == nil {
			}
			return fakelog.Verdict{}
		}, func(r *pipeline.Replayer) { r.Limits.ClientRate = 1 })
		time.Sleep(time.Second)
		for i := range 90 {
			s.keep("t/1", fmt.Sprint(i))
		}
		s.subscribe("c", "t/1")
		time.Sleep(10 * time.Second)
		before := len(b.payloads("c"))
		if before < 5 {
			t.Fatalf("%d messages came in 10 s at one a second", before)
		}
		deaf <- struct{}{}
		s.disconnect("c")
		time.Sleep(40 * time.Second)
		if more := len(b.payloads("c")) - before; more > 11 {
			t.Errorf("%d more came in 40 s although the client had gone", more)
		}
		<-deaf
		time.Sleep(20 * time.Second)
		if more := len(b.payloads("c")) - before; more > 11 {
			t.Errorf("%d more came after its disconnect was read", more)
		}
	})
}
