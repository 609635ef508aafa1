package dynamodb_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/restante/restante/event"
	"github.com/restante/restante/event/eventtest"
	"github.com/restante/restante/fault"
	"github.com/restante/restante/internal/stack/ports"
	"github.com/restante/restante/sinks"
	"github.com/restante/restante/sinks/dynamodb"
	"github.com/restante/restante/sinks/memory"
)

// persist applies until all is durable, as the pipeline does.
func persist(tb testing.TB, s sinks.Store, ops []sinks.Op) error {
	tb.Helper()
	for {
		err := s.Apply(tb.Context(), ops)
		if err == nil {
			return nil
		}
		if fault.IsPoison(err) || fault.IsFatal(err) || tb.Context().Err() != nil {
			return err
		}
		if part, ok := errors.AsType[*sinks.ApplyError](err); ok {
			var left []sinks.Op
			for i := range part.Failed {
				left = append(left, ops[i])
			}
			ops = left
		}
	}
}

// TestWhateverTheServiceDoesTheStateIsRight: 2,000 writes, 10,000 in a soak, through a proxy that throttles, fails, cuts and delays.
func TestWhateverTheServiceDoesTheStateIsRight(t *testing.T) {
	t.Parallel()
	for name, strict := range map[string]bool{"plain": false, "strict": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const seed, topics = 20261123, 10
			patience := 700 * time.Millisecond
			if !strict {
				patience = 4 * time.Second // so that what the machine delays is told from what was given up
			}
			each := 100
			if os.Getenv("RESTANTE_SOAK") != "" {
				each = 500
			}
			t.Logf("seed %d", seed)
			direct := configOf(t)
			direct.Strict, direct.PoolSize = strict, 16
			right := open(t, direct) // makes the tables, and reads
			f := newFaults(seed, patience, strict)
			cfg := direct
			cfg.Endpoint, cfg.RequestTimeout = proxy(t, direct.Endpoint, f.handle), patience
			s, err := dynamodb.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close() //nolint:errcheck // it returns none

			model := &memory.Store{}
			rng := rand.New(rand.NewPCG(seed, 2))
			at := time.Now().Add(-time.Hour)
			var owners [topics][]sinks.Op
			var names [topics]event.Topic
			writes := 0
			for o := range owners {
				topic, client := eventtest.Topic(t, fmt.Sprintf("t/%d/x", o)), event.ClientID(fmt.Sprintf("client-%d", o))
				names[o] = topic
				var ops []sinks.Op
				for i := range each {
					m := message(topic, at.Add(time.Duration(i)*time.Second), o)
					m.Payload = fmt.Appendf(nil, "%d", i)
					ops = append(ops, sinks.PutMessage{Message: m})
					if rng.IntN(3) > 0 {
						ops = append(ops, sinks.DeleteMessage{Topic: topic, ID: m.ID, Stamp: m.ID.Micros() + 1})
					}
					switch stamp := m.ID.Micros(); rng.IntN(8) {
					case 0:
						ops = append(ops, sinks.PutAcked{Client: client, Topic: topic.String(), Message: m.ID, Stamp: stamp})
					case 1:
						ops = append(ops, sinks.PutRetained{Message: m})
					case 2:
						ops = append(ops, sinks.PutSub{Client: client, Filter: eventtest.Filter(t, fmt.Sprintf("f/%d", rng.IntN(5))), QoS: event.QoS(rng.IntN(3)), Stamp: stamp})
					case 3:
						ops = append(ops, sinks.PutClient{Client: client, Up: sinks.ClientUp{Node: "n", OnlineAt: m.ID.Time(), Stamp: stamp}})
					}
				}
				owners[o] = ops
				writes += len(ops)
				merged, _ := sinks.Coalesce(ops)
				if err := model.Apply(t.Context(), merged); err != nil {
					t.Fatal(err)
				}
				if strict { // any order, some twice
					owners[o] = append(ops, ops[:len(ops)/4]...)
					rng.Shuffle(len(owners[o]), func(i, j int) { owners[o][i], owners[o][j] = owners[o][j], owners[o][i] })
				} else { // the order of the log, and a restart somewhere in the midst
					owners[o] = append(ops[:len(ops)*2/3:len(ops)*2/3], ops[len(ops)/3:]...)
				}
			}
			var g errgroup.Group
			for _, ops := range owners {
				g.Go(func() error {
					for len(ops) > 0 {
						n := min(60, len(ops))
						batch, _ := sinks.Coalesce(ops[:n])
						if err := persist(t, s, batch); err != nil {
							return err
						}
						ops = ops[n:]
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(patience + time.Second) // what is late lands
			t.Logf("%d writes; faults: %v", writes, f.seen)
			for _, kind := range []string{"throttled", "500", "cut before", "cut behind", "cut within", "slow", "unprocessed"} {
				if f.seen[kind] == 0 {
					t.Errorf("no request was %s", kind)
				}
			}
			for o, topic := range names {
				client := event.ClientID(fmt.Sprintf("client-%d", o))
				if d := cmp.Diff(idsOf(read(t, model, topic, 1000, false)), idsOf(read(t, right, topic, 1000, false))); d != "" {
					t.Errorf("topic %s (-want +got):\n%s", topic, d)
				}
				for _, look := range []func(sinks.Store) (any, error){
					func(s sinks.Store) (any, error) {
						ms, err := s.Retained(t.Context(), eventtest.Filter(t, topic.String()), event.Topic{}, 5)
						return idsOf(ms), err
					},
					func(s sinks.Store) (any, error) {
						id, ok, err := s.Acked(t.Context(), client, topic.String())
						return fmt.Sprint(id, ok), err
					},
					func(s sinks.Store) (any, error) {
						subs, err := s.Subs(t.Context(), client)
						return fmt.Sprint(subs), err
					},
					func(s sinks.Store) (any, error) {
						c, ok, err := s.Client(t.Context(), client)
						return fmt.Sprint(c.Online, c.Node, c.OnlineAt.Unix(), ok), err
					},
				} {
					want, err := look(model)
					if err != nil {
						t.Fatal(err)
					}
					got, err := look(right)
					if d := cmp.Diff(want, got); err != nil || d != "" {
						t.Errorf("%s: %v (-want +got):\n%s", client, err, d)
					}
				}
			}
		})
	}
}

// TestAWriteWhoseAnswerIsLostIsNotCountedAsDone though it has landed.
func TestAWriteWhoseAnswerIsLostIsNotCountedAsDone(t *testing.T) {
	t.Parallel()
	for name, swallow := range map[string]func(call, []byte){
		"cut":  func(c call, _ []byte) { c.cut(nil) },
		"half": func(c call, answer []byte) { c.cut(answer) },
		"late": func(c call, answer []byte) {
			time.Sleep(4 * time.Second)
			c.answer(http.StatusOK, answer)
		},
	} {
		for kind, strict := range map[string]bool{"plain": false, "strict": true} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				direct := configOf(t)
				direct.Strict = strict
				right := open(t, direct)
				var on atomic.Bool
				cfg := direct
				if name == "late" {
					cfg.RequestTimeout = 2 * time.Second
				}
				cfg.Endpoint = proxy(t, direct.Endpoint, func(c call) {
					status, answer := c.forward(c.body)
					if on.Load() && (c.operation == "BatchWriteItem" || c.operation == "BatchExecuteStatement") {
						swallow(c, answer)
						return
					}
					c.answer(status, answer)
				})
				s, err := dynamodb.Open(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close() //nolint:errcheck // it returns none
				topic := eventtest.Topic(t, "t/1")
				op := sinks.PutMessage{Message: message(topic, time.Now(), 1)}
				on.Store(true)
				err = s.Apply(t.Context(), []sinks.Op{op})
				if err == nil || fault.IsPoison(err) || fault.IsFatal(err) {
					t.Fatalf("Apply gave %v, want an error that is tried again", err)
				}
				if rows := scan(t, direct, "mqtt_msg"); len(rows) != 1 {
					t.Errorf("mqtt_msg has %d items, want the one whose answer was lost", len(rows))
				}
				if got := read(t, right, topic, 10, false); len(got) > 0 {
					t.Error("the message is seen, though its id must not be listed before its item is known to be there")
				}
				on.Store(false)
				apply(t, s, op)
				if got := read(t, right, topic, 10, false); len(got) != 1 {
					t.Errorf("%d messages after the retry", len(got))
				}
			})
		}
	}
}

// TestPoisonInABatchSparesTheOthers: each op that the service could never take is named alone.
func TestPoisonInABatchSparesTheOthers(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(-time.Minute)
	long := func(n int) string { return strings.Repeat("x", n) }
	big := func(topic string) sinks.Message {
		m := message(eventtest.Topic(t, topic), at, 99)
		m.Payload = bytes.Repeat([]byte("x"), 400<<10)
		return m
	}
	for name, bad := range map[string]sinks.Op{
		"an item over 400 KB":             sinks.PutMessage{Message: big("t/big")},
		"a retained item over 400 KB":     sinks.PutRetained{Message: big("t/big")},
		"a topic too long for its key":    sinks.PutMessage{Message: message(eventtest.Topic(t, long(2040)), at, 99)},
		"a level too long for its key":    sinks.PutMessage{Message: message(eventtest.Topic(t, "a/"+long(1100)), at, 99)},
		"a retained topic that is so":     sinks.PutRetained{Message: message(eventtest.Topic(t, long(2049)), at, 99)},
		"a client id too long for a sub":  sinks.PutSub{Client: event.ClientID(long(2049)), Filter: eventtest.Filter(t, "f"), Stamp: 1},
		"a filter too long for its key":   sinks.PutSub{Client: "c", Filter: eventtest.Filter(t, long(1025)), Stamp: 1},
		"a client id too long for an ack": sinks.PutAcked{Client: event.ClientID(long(1025)), Topic: "t", Stamp: 1},
		"an id that names two topics":     sinks.PutMessage{Message: message(eventtest.Topic(t, "other"), at, 63)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, configOf(t))
			topic := eventtest.Topic(t, "t/1")
			var ops []sinks.Op
			for i := range 63 {
				ops = append(ops, sinks.PutMessage{Message: message(topic, at, i+1)})
			}
			ops = append(ops, bad)
			err := s.Apply(t.Context(), ops)
			var part *sinks.ApplyError
			if !errors.As(err, &part) || len(part.Failed) != 1 || !fault.IsPoison(part.Failed[63]) {
				t.Fatalf("Apply gave %v, want op 63 alone as poison", err)
			}
			t.Log(part.Failed[63])
			if got := read(t, s, topic, 100, false); len(got) != 63 {
				t.Errorf("%d messages are stored, want 63", len(got))
			}
		})
	}
}

// TestABatchThatTheServiceRefusesIsHalvedToItsPoison where only the service knows.
func TestABatchThatTheServiceRefusesIsHalvedToItsPoison(t *testing.T) {
	t.Parallel()
	for kind, strict := range map[string]bool{"plain": false, "strict": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			direct := configOf(t)
			direct.Strict = strict
			open(t, direct)
			cfg := direct
			cfg.Endpoint = proxy(t, direct.Endpoint, func(c call) {
				if strings.HasPrefix(c.operation, "Batch") && bytes.Contains(c.body, []byte("never storable")) {
					c.refuse(http.StatusBadRequest, "ValidationException")
					return
				}
				status, answer := c.forward(c.body)
				c.answer(status, answer)
			})
			s := open(t, cfg)
			topic, at := eventtest.Topic(t, "t/1"), time.Now().Add(-time.Minute)
			var ops []sinks.Op
			for i := range 64 {
				m := message(topic, at, i)
				if i == 30 {
					m.Payload = []byte("never storable")
				}
				ops = append(ops, sinks.PutMessage{Message: m})
			}
			err := s.Apply(t.Context(), ops)
			var part *sinks.ApplyError
			if !errors.As(err, &part) || len(part.Failed) != 1 || !fault.IsPoison(part.Failed[30]) {
				t.Fatalf("Apply gave %v, want op 30 alone as poison", err)
			}
			if got := read(t, s, topic, 100, false); len(got) != 63 {
				t.Errorf("%d messages are stored, want 63", len(got))
			}
		})
	}
}

// TestTheLargestItemIsCountedAsTheServiceCountsIt, so that nothing that fits is refused by us, nor much that does not by it.
func TestTheLargestItemIsCountedAsTheServiceCountsIt(t *testing.T) {
	t.Parallel()
	s := open(t, configOf(t))
	topic, at := eventtest.Topic(t, "t/large"), time.Now().Add(-time.Minute)
	fits := 0
	for over := range 40 { // from what is surely too large, down
		m := message(topic, at, over)
		m.Payload = bytes.Repeat([]byte("x"), 400<<10-100-over*3)
		err := s.Apply(t.Context(), []sinks.Op{sinks.PutMessage{Message: m}})
		switch {
		case err == nil:
			fits++
		case !fault.IsPoison(err):
			t.Fatal(err)
		case !strings.Contains(err.Error(), "its item would have"):
			t.Logf("the service refused what we let through: %v", err)
		}
	}
	if fits == 0 || fits == 40 {
		t.Errorf("%d of 40 items fit: the bound is not among them", fits)
	}
}

func TestAServiceThatIsAwayIsWaitedForAndNamedWithWhatToDo(t *testing.T) {
	t.Parallel()
	cfg := configOf(t)
	cfg.Endpoint = "http://" + ports.Addr(t)
	s, err := dynamodb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	err = s.Check(t.Context())
	if err == nil || fault.IsFatal(err) || fault.IsPoison(err) {
		t.Fatalf("got %v, want an error that is waited for", err)
	}
	for _, want := range []string{"connection refused", "start the service", "endpoint"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}
