package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/audit"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/memory"
)

// balky is a store that fails now and then, is slow, and takes no poison.
type balky struct {
	*memory.Store
	rnd *rand.Rand
	mu  sync.Mutex
}

func (b *balky) Apply(ctx context.Context, ops []sinks.Op) error {
	b.mu.Lock()
	wait, fails := time.Duration(b.rnd.IntN(2000))*time.Millisecond, b.rnd.IntN(4) == 0
	b.mu.Unlock()
	if err := pipeline.Sleep(ctx, wait); err != nil {
		return err
	}
	failed := map[int]error{}
	var good []sinks.Op
	for i, o := range ops {
		if m, ok := o.(sinks.PutMessage); ok && len(m.Payload) > 20 {
			failed[i] = fault.Poison(errors.New("too long"))
			continue
		}
		if fails && i%2 == 0 {
			failed[i] = errNotNow
			continue
		}
		good = append(good, o)
	}
	if err := b.Store.Apply(ctx, good); err != nil {
		return err
	}
	if len(failed) > 0 {
		return &sinks.ApplyError{Failed: failed}
	}
	return nil
}

// write runs a writer until stop is called.
func (w *world) write(store sinks.Store) (stop func()) {
	c := w.cluster.Client()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { // ends with ctx
		dead := w.deadLetters(c)
		storing := &pipeline.Storing{Sink: "s", Store: store, Backoff: pipeline.DefaultBackoff, Metrics: w.metrics, Log: quiet}
		err := pipeline.Consume(ctx, context.Background(), c.Group(group, topics.Messages), quiet,
			func(ctx, work context.Context, g pipeline.Generation, tp pipeline.TP, from int64) error {
				k := &pipeline.Worker{
					TP: tp, Kind: event.Messages, From: from, Group: group, Generation: g, Reader: c.Log(), Plan: w.rules.ForSink("s"), Storing: storing,
					Dead: dead, Metrics: w.metrics, Log: quiet, Now: time.Now,
					Limits: pipeline.Limits{
						Hold: time.Second, Records: 100, Bytes: 1 << 20, Fetch: 50, Drain: time.Minute, Session: 30 * time.Second, Memory: 1000, Recall: time.Minute,
					},
				}
				return k.Run(ctx, work)
			})
		done <- errors.Join(err, dead.Producer.Close(context.Background()))
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// Beside a writer on a store that is slow and fails, with acks, duplicates, expiry and poison, no difference is seen; and of those that
// are made in the end, each is.
func TestARunningPipelineHasNoDifferencesAndPlantedOnesAreFound(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				w := newWorld(t)
				stop := w.write(&balky{Store: w.store, rnd: rand.New(rand.NewPCG(seed, 2))})
				var published []event.Published
				acked := map[event.ID]int64{}
				offsets := map[event.ID]int64{}
				retained := map[string][]event.Published{}
				over := make(chan struct{})
				go func() { // ends by itself
					defer close(over)
					for range 200 {
						switch n := rnd.IntN(20); {
						case n < 9 || len(published) == 0:
							payload := fmt.Sprint("message ", len(published))
							if rnd.IntN(15) == 0 {
								payload += " that is too long for the store"
							}
							m, at := w.publish(fmt.Sprintf("t/%d", rnd.IntN(6)), payload)
							published, offsets[m.ID] = append(published, m), at
						case n < 15:
							m := published[rnd.IntN(len(published))]
							at := w.ack(m)
							if _, twice := acked[m.ID]; !twice {
								acked[m.ID] = at
							}
						case n == 15:
							w.append(published[rnd.IntN(len(published))])
						case n == 16:
							to := fmt.Sprintf("r/%d", rnd.IntN(5))
							m, at := w.retain(to, []string{"", "on", "off"}[rnd.IntN(3)])
							retained[to], offsets[m.ID] = append(retained[to], m), at
						default:
							time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
						}
					}
				}()
				for busy := true; busy; {
					select {
					case <-over:
						busy = false
					case <-time.After(500 * time.Millisecond):
						_, found := w.audit(func(a *audit.Audit) { a.Store = slow{w.store, 6 * time.Second} })
						w.same("meanwhile", nil, found)
					}
				}
				time.Sleep(time.Minute)
				_, found := w.audit(nil)
				w.same("in the end", nil, found)
				stop()

				damaged := &memory.Store{}
				var want []seen
				for _, m := range published {
					_, isAcked := acked[m.ID]
					long := len(m.Payload) > 20
					switch n := rnd.IntN(6); {
					case n == 0 && !isAcked && !long: // not restored
						want = append(want, seen{audit.Missing, m.ID, offsets[m.ID]})
						continue
					case n == 1 && isAcked:
						want = append(want, seen{audit.Undeleted, m.ID, acked[m.ID]})
					case n == 2 && !isAcked:
						m.Payload = []byte("another")
						want = append(want, seen{audit.Differs, m.ID, offsets[m.ID]})
					case isAcked, long:
						continue
					}
					if err := damaged.Apply(t.Context(), w.rules.ForSink("s")(m).Ops); err != nil {
						t.Fatal(err)
					}
				}
				for to, all := range retained {
					last, first := all[len(all)-1], all[0]
					gone := len(last.Payload) == 0
					switch n := rnd.IntN(4); {
					case n == 0 && !gone: // not restored
						want = append(want, seen{audit.Missing, last.ID, offsets[last.ID]})
						continue
					case n == 1 && len(first.Payload) > 0 && first.ID != last.ID: // as it was before
						kind := audit.Stale
						if gone {
							kind = audit.Undeleted
						}
						want = append(want, seen{kind, first.ID, offsets[last.ID]})
						last = first
					case n == 2 && !gone:
						last.Payload = []byte("another")
						want = append(want, seen{audit.Differs, last.ID, offsets[last.ID]})
					case n == 3:
						last = w.message(to, "forged")
						last.Retain = true
						want = append(want, seen{audit.Unknown, last.ID, -1})
					}
					if err := damaged.Apply(t.Context(), w.rules.ForSink("s")(last).Ops); err != nil {
						t.Fatal(err)
					}
				}
				w.store = damaged
				forged := w.message("t/1", "forged")
				w.apply(forged)
				want = append(want, seen{audit.Unknown, forged.ID, -1})
				_, found = w.audit(nil)
				w.same("damaged", want, found)
			})
		})
	}
}
