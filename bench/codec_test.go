package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/restante/restante/event"
)

// batchOf is how many records a record batch holds here.
const batchOf = 500

// records hands kafka-go n records, each made by next.
type records struct {
	n    int
	next func(i int) kafka.Record
	i    int
	rec  kafka.Record
}

// ReadRecord returns the next record; the one before is then no longer valid.
func (r *records) ReadRecord() (*kafka.Record, error) {
	if r.i == r.n {
		return nil, io.EOF
	}
	r.rec = r.next(r.i)
	r.i++
	return &r.rec, nil
}

// roundTrip writes records into a record batch, reads them back, and returns the size of the batch.
func roundTrip(b *testing.B, buf *bytes.Buffer, in *records, each func(*kafka.Record)) int {
	b.Helper()
	buf.Reset()
	set := protocol.RecordSet{Version: 2, Records: in}
	if _, err := set.WriteTo(buf); err != nil {
		b.Fatal(err)
	}
	size := buf.Len()
	var back protocol.RecordSet
	if _, err := back.ReadFrom(buf); err != nil {
		b.Fatal(err)
	}
	for n := 0; ; n++ {
		r, err := back.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			if n != in.n {
				b.Fatalf("read %d records, wrote %d", n, in.n)
			}
			return size
		}
		if err != nil {
			b.Fatal(err)
		}
		each(r)
	}
}

// contents reads what a record holds. kafka-go keeps it in pages of its own.
func contents(b *testing.B, r *kafka.Record) (key, value []byte) {
	b.Helper()
	key, err := kafka.ReadAll(r.Key)
	if err == nil {
		value, err = kafka.ReadAll(r.Value)
	}
	if err != nil {
		b.Fatal(err)
	}
	return key, value
}

// BenchmarkCodec compares encoding and decoding a publish of 256 bytes, by way of a record batch, with a bare round trip of
// the same bytes: key, value and six headers.
func BenchmarkCodec(b *testing.B) {
	minter := event.Minter{Now: time.Now}
	now := time.Now().Truncate(time.Millisecond)
	events := make([]event.Event, batchOf)
	type message struct {
		key, value []byte
		headers    []kafka.Header
	}
	bare := make([]message, batchOf)
	for i := range events {
		events[i] = publish(b, &minter, i, now)
		w := event.Encode(events[i], events[i].Routes()[0], now)
		if len(w.Headers) != 6 {
			b.Fatalf("a publish has %d headers, the ceiling has six", len(w.Headers))
		}
		bare[i] = message{w.Key, w.Value, headersOf(w, nil)}
	}
	var buf bytes.Buffer
	var sizes [2]int
	var headers []kafka.Header
	var back []event.Header
	ours := func() {
		sizes[0] = roundTrip(b, &buf, &records{n: batchOf, next: func(i int) kafka.Record {
			w := event.Encode(events[i], events[i].Routes()[0], now)
			headers = headersOf(w, headers[:0])
			return kafka.Record{Time: w.Time, Key: kafka.NewBytes(w.Key), Value: kafka.NewBytes(w.Value), Headers: headers}
		}}, func(r *kafka.Record) {
			back = back[:0]
			for _, h := range r.Headers {
				back = append(back, event.Header{Key: h.Key, Value: h.Value})
			}
			w := event.Wire{Time: r.Time, Headers: back}
			w.Key, w.Value = contents(b, r)
			if _, err := event.Decode(event.Messages, w); err != nil {
				b.Fatal(err)
			}
		})
	}
	var last []byte
	ceiling := func() {
		sizes[1] = roundTrip(b, &buf, &records{n: batchOf, next: func(i int) kafka.Record {
			m := &bare[i]
			return kafka.Record{Time: now, Key: kafka.NewBytes(m.key), Value: kafka.NewBytes(m.value), Headers: m.headers}
		}}, func(r *kafka.Record) { _, last = contents(b, r) })
	}
	const rounds, batches = 21, 20
	var mine, theirs []float64
	for b.Loop() {
		for range rounds {
			runtime.GC()
			mine = append(mine, perOp(batches, ours)/batchOf)
			runtime.GC()
			theirs = append(theirs, perOp(batches, ceiling)/batchOf)
		}
	}
	if sizes[0] != sizes[1] || len(last) != payloadSize {
		b.Fatalf("batches of %d and %d bytes, payload of %d", sizes[0], sizes[1], len(last))
	}
	atMost(b, "of a bare record batch", median(ratios(mine, theirs)), "×", 1.5)
	report(b, "ours", median(mine), "ns CPU/event")
	report(b, "bare", median(theirs), "ns CPU/record")
}

// perOp is the processor time of one call, in ns, over n calls; with that of the garbage that they leave. Unlike the time on
// the wall it does not tell of what else the machine did.
func perOp(n int, do func()) float64 {
	began := cpu()
	for range n {
		do()
	}
	return float64((cpu() - began).Nanoseconds()) / float64(n)
}

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // unreachable: both arguments are valid
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func headersOf(w event.Wire, into []kafka.Header) []kafka.Header {
	for _, h := range w.Headers {
		into = append(into, kafka.Header{Key: h.Key, Value: h.Value})
	}
	return into
}

const payloadSize = 256

// publish is the i-th message of 256 bytes, on one of 1000 topics.
func publish(b *testing.B, m *event.Minter, i int, at time.Time) event.Published {
	b.Helper()
	topic, err := event.ParseTopic(fmt.Sprintf("plant/%d/sensor/%d", i%10, i%1000))
	if err != nil {
		b.Fatal(err)
	}
	payload := bytes.Repeat([]byte{'.'}, payloadSize)
	copy(payload, fmt.Sprint(i))
	return event.Published{
		Head:  event.Head{ID: m.Mint(), Source: "restante/embedded/bench", At: at},
		Topic: topic, Sender: "device-4711", QoS: 1, Payload: payload,
	}
}
