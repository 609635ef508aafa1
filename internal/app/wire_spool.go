package app

import (
	"context"
	"fmt"
	"time"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/spool"
)

// verifyKafka compares the topics with what they must be.
func (w *Wire) verifyKafka(ctx context.Context) error {
	return w.Kafka.Verify(ctx, w.Process.Config.Specs())
}

// kafkaOrSpool is ReadyKafka for an ingest: with a spool it does not wait for brokers that do not answer, since the events have
// somewhere to go. What is wrong with brokers that do answer is an error all the same.
func (w *Wire) kafkaOrSpool(ctx context.Context) error {
	if !w.Process.Config.Ingest.Spool.used() {
		return w.ReadyKafka(ctx)
	}
	const first = 3 * time.Second
	w.kafkaSeen = make(chan struct{})
	short, cancel := context.WithTimeout(ctx, first)
	defer cancel()
	err := w.verifyKafka(short)
	if fault.IsFatal(err) {
		return err
	}
	if err == nil {
		close(w.kafkaSeen)
	}
	w.spooling("")
	return nil
}

// lookForKafka goes on where kafkaOrSpool has not seen the topics.
func (w *Wire) lookForKafka(ctx context.Context) error {
	select {
	case <-w.kafkaSeen:
		return nil
	default:
	}
	status := func(ok bool, detail string) {
		if !ok {
			w.spooling(detail)
		}
	}
	if err := w.awaiting(ctx, conditionKafka, status, w.verifyKafka); err != nil {
		return endedEarly(ctx, err)
	}
	close(w.kafkaSeen)
	return nil
}

// spooling tells the health why events go to the spool, "" when they do not. The sources are served in both cases.
func (w *Wire) spooling(why string) {
	if why != "" {
		why = "events go to the spool: " + why
	}
	w.Process.Health.Set(conditionKafka, true, why)
}

// ingestProducer is the way of the events: into Kafka, and where there is a spool also onto the disk.
func (w *Wire) ingestProducer() (pipeline.Producer, error) {
	s := w.Process.Config.Ingest.Spool
	inner := w.Kafka.Producer()
	if !s.used() {
		return inner, nil
	}
	p, err := spool.Open(spool.Config{
		Dir: s.Path, Size: int64(s.Size), After: s.After, Inner: inner, Topics: w.Topics, Ready: w.kafkaSeen, Changed: w.spooling,
		Now: time.Now, Metrics: w.exports.spool, Log: w.Process.Log,
	})
	if err != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = inner.Close(ended) // it was given nothing
		return nil, fmt.Errorf("ingest.spool: %w", err)
	}
	return p, nil
}
