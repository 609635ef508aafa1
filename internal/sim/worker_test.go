package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// drawWorkers is a plan for writers alone: the log is written from outside.
func drawWorkers(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 4))
	p := draw(seed)
	p.actions, p.clients, p.stays, p.ingests, p.readers, p.sessionParts = nil, nil, nil, 0, 0, 1
	p.features = features{tells: true}
	p.writers = 2
	for i := range 20 + r.IntN(20) {
		topic := mustTopic(fmt.Sprint("u/", r.IntN(4)))
		at := within(r, 0, chaos)
		e := event.Published{
			Head: event.Head{Source: "restante/sim"}, Topic: topic, Sender: "p", QoS: 1, Payload: fmt.Append(nil, "#", i),
		}
		if r.IntN(6) == 0 {
			e.Payload = []byte("poison")
		}
		copies, acked, wait := 1+r.IntN(6)/5, r.IntN(2) == 0, within(r, 0, 2*time.Second)
		p.add(at, func(w *world) {
			e.At = time.Now().Truncate(time.Millisecond)
			e.ID = event.IDOf(time.Now().UnixMicro(), 9, uint16(i))
			w.hist.published(e)
			for range copies {
				w.put(e)
			}
			if acked {
				w.step.after(wait, func() {
					id := event.IDOf(time.Now().UnixMicro(), 8, uint16(i))
					w.put(event.Acked{Head: event.Head{ID: id, At: time.Now(), Source: "restante/sim"}, Topic: topic, Client: "c", Message: e.ID})
				})
			}
		}, "m%d", i)
	}
	for range r.IntN(3) {
		p.add(within(r, 0, chaos), func(w *world) {
			w.cluster.Put(pipeline.Outgoing{Topic: topics.Messages, Wire: event.Wire{Key: []byte("u/1"), Value: []byte("junk"), Time: time.Now()}})
		}, "a foreign record")
	}
	p.faults(r)
	p.sort()
	p.need()
	return p
}

// put appends an event as an ingest would.
func (w *world) put(e event.Event) {
	r := e.Routes()[0]
	w.cluster.Put(pipeline.Outgoing{Topic: topics.Of(r.Kind), Wire: event.Encode(e, r, time.Now())})
}

func TestWorkerLaw(t *testing.T) {
	t.Parallel()
	few := int64(1000)
	if raced {
		few = 100 // the detector makes each five times as long
	}
	judge(t, few, 20_000, drawWorkers)
}
