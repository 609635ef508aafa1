package app

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/pipeline"
)

// subscriber is a source that is ready when a test says so.
type subscriber struct {
	pipeline.Source
	ready atomic.Bool
}

func (s *subscriber) Ready() bool { return s.ready.Load() }

// What is published before a source has subscribed is lost: until then ingest is not ready, and afterwards it stays so.
func TestIngestIsReadyWhenItsSourcesHaveSubscribed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &Wire{Process: &Process{Health: NewHealth(conditionSources)}}
		one, two := &subscriber{}, &subscriber{}
		caller := struct{ pipeline.Source }{} // one that is called has nothing to wait for
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		done := make(chan error, 1)
		go func() { done <- w.readySources(ctx, []pipeline.Source{caller, one, two}) }() // ends with the test at the latest
		isReady := func() bool {
			time.Sleep(time.Second)
			synctest.Wait()
			ok, _ := w.Process.Health.Ready()
			return ok
		}
		if isReady() {
			t.Error("ready with two that have not subscribed")
		}
		one.ready.Store(true)
		if isReady() {
			t.Error("ready with one that has not subscribed")
		}
		two.ready.Store(true)
		if !isReady() {
			t.Error("not ready with all subscribed")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		one.ready.Store(false)
		if !isReady() {
			t.Error("a broker that goes away later takes the readiness of the others away")
		}
	})
}

func TestIngestThatEndsDoesNotWaitForItsSources(t *testing.T) {
	t.Parallel()
	w := &Wire{Process: &Process{Health: NewHealth(conditionSources)}}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := w.readySources(ctx, []pipeline.Source{&subscriber{}}); err != nil {
		t.Error(err)
	}
	if ok, _ := w.Process.Health.Ready(); ok {
		t.Error("ready without a subscription")
	}
}
