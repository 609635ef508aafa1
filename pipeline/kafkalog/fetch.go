package kafkalog

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// Versions of the Fetch request that are spoken: the first with record batches (Kafka 0.11), and the last one before headers of
// another layout, which every broker up to 4.x answers.
const (
	oldestFetch = 4
	newestFetch = 11
)

// answerGrace is how long after the wait it asked for a stream gives its broker to answer, and then to go on with its answer.
const answerGrace = 5 * time.Second

// fetchConn is a connection to the leader of a partition, logged in. It is not safe for concurrent use.
type fetchConn struct {
	net.Conn
	client  string
	tp      pipeline.TP
	version int16
	asked   int32 // correlation id of the last request
	size    [4]byte
}

// dial connects to the leader of a partition. The end of ctx aborts it at any point, a login that hangs included.
func (c *Client) dial(ctx context.Context, tp pipeline.TP, leader kafka.Broker) (*fetchConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var (
		raw  net.Conn
		stop func() bool
		d    = kafka.Dialer{ClientID: c.cfg.ClientID, SASLMechanism: c.mechanism}
	)
	// kafka-go connects and logs in; the connection itself is kept, for requests that kafka-go does not make.
	d.DialFunc = func(dialing context.Context, network, addr string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(dialing, network, addr)
		if err != nil {
			return nil, err
		}
		stop = context.AfterFunc(ctx, func() { _ = nc.Close() })
		raw = nc
		if c.cfg.TLS == nil {
			return nc, nil
		}
		cfg := c.cfg.TLS.Clone()
		if cfg.ServerName == "" {
			cfg.ServerName = leader.Host
		}
		secure := tls.Client(nc, cfg)
		raw = secure
		if err := secure.HandshakeContext(dialing); err != nil {
			_ = nc.Close()
			return nil, err
		}
		return secure, nil
	}
	version := int16(0)
	conn, err := d.DialPartition(ctx, "tcp", "", kafka.Partition{Topic: tp.Topic, ID: tp.Part, Leader: leader})
	if err == nil {
		version, err = fetchVersion(conn)
		if err != nil {
			_ = conn.Close()
		}
	}
	if stop != nil && !stop() && err == nil {
		_ = conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s, the leader of %v: %w", address(leader), tp, err)
	}
	return &fetchConn{Conn: raw, client: c.cfg.ClientID, tp: tp, version: version}, nil
}

// fetchVersion asks the broker for the versions that it knows. Nothing follows its answer: what the kafka.Conn has read ahead is
// nothing.
func fetchVersion(conn *kafka.Conn) (int16, error) {
	known, err := conn.ApiVersions()
	if err != nil {
		return 0, err
	}
	for _, v := range known {
		if v.ApiKey != int16(protocol.Fetch) {
			continue
		}
		if v.MinVersion > newestFetch || v.MaxVersion < oldestFetch {
			return 0, fault.Fatal(fmt.Errorf("the broker fetches by versions %d to %d and this program by %d to %d: Kafka 0.11 to 4 "+
				"is needed", v.MinVersion, v.MaxVersion, oldestFetch, newestFetch))
		}
		return min(v.MaxVersion, newestFetch), nil
	}
	return 0, errors.New("the broker names no version of the Fetch request")
}

// ask sends a request for the records from an offset on, and returns when the answer begins, with its size.
func (c *fetchConn) ask(from int64, most int, wait time.Duration) (size int, err error) {
	if err := c.SetDeadline(time.Now().Add(wait + answerGrace)); err != nil {
		return 0, err
	}
	c.asked++
	// Uncommitted reads: a transaction that another program leaves open must not hold up what lies behind it.
	err = protocol.WriteRequest(c.Conn, c.version, c.asked, c.client, &fetchapi.Request{
		ReplicaID: -1, MaxWaitTime: int32(min(wait, time.Minute).Milliseconds()), MinBytes: 1, MaxBytes: int32(most), //nolint:gosec // at most 64 MiB
		SessionEpoch: -1,
		Topics: []fetchapi.RequestTopic{{Topic: c.tp.Topic, Partitions: []fetchapi.RequestPartition{{
			Partition: int32(c.tp.Part), CurrentLeaderEpoch: -1, FetchOffset: from, LogStartOffset: -1, //nolint:gosec // a partition number
			PartitionMaxBytes: int32(most), //nolint:gosec // at most 64 MiB
		}}}},
	})
	if err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c.Conn, c.size[:]); err != nil {
		return 0, err
	}
	size = int(int32(binary.BigEndian.Uint32(c.size[:]))) //nolint:gosec // two's complement on the wire
	if size < 0 || size > largest {
		return 0, fault.Fatal(fmt.Errorf("an answer of %d bytes: a batch of over %d MiB is not read", size, largest>>20))
	}
	return size, nil
}

// answer reads the answer of that size into buf, which grows as it comes.
func (c *fetchConn) answer(buf *[]byte, size, most int) (fetched, error) {
	if err := c.readAnswer(buf, size, most); err != nil {
		return fetched{}, err
	}
	return parseFetched(*buf, c.version, c.asked, c.tp)
}

// readAnswer reads size bytes into buf. More room than what was asked for, and what frames it, is only made for what has come.
func (c *fetchConn) readAnswer(buf *[]byte, size, most int) error {
	const frame = 1 << 10
	b := (*buf)[:0]
	defer func() { *buf = b }()
	b = slices.Grow(b, min(size, most+frame))
	for len(b) < size {
		if len(b) == cap(b) {
			b = slices.Grow(b, min(size-len(b), len(b)))
		}
		if err := c.SetReadDeadline(time.Now().Add(answerGrace)); err != nil {
			return err
		}
		n, err := c.Read(b[len(b):min(cap(b), size)])
		b = b[:len(b)+n]
		if err != nil && len(b) < size {
			if err == io.EOF { //nolint:errorlint // net.Conn does not wrap it
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// fetched is the answer to a fetch.
type fetched struct {
	throttle time.Duration // how long the broker wants to be left alone
	set      []byte        // record batches, the last of them perhaps cut
}

// parseFetched reads the answer to request asked. A broker's error is an error.
func parseFetched(b []byte, version int16, asked int32, tp pipeline.TP) (fetched, error) {
	r := numbers{b: b}
	var f fetched
	id := r.int32()
	f.throttle = time.Duration(r.int32()) * time.Millisecond
	code := kafka.Error(0)
	if version >= 7 {
		code = kafka.Error(r.int16())
		r.int32() // session
	}
	topics := r.int32()
	switch {
	case r.bad:
		return fetched{}, errShortAnswer
	case id != asked:
		return fetched{}, fmt.Errorf("answer %d to request %d", id, asked)
	case code != 0:
		return fetched{}, code
	case topics == 0: // a broker that wants to be left alone names nothing
		return f, nil
	}
	topic := string(r.take(int(r.int16())))
	parts, part := r.int32(), r.int32()
	code = kafka.Error(r.int16())
	r.take(8 + 8) // ends of the partition and of what is committed
	if version >= 5 {
		r.take(8) // start of the partition
	}
	if aborted := int(r.int32()); aborted > 0 {
		r.take(aborted * 16)
	}
	if version >= 11 {
		r.int32() // a replica that is nearer
	}
	if n := int(r.int32()); n > 0 {
		f.set = r.take(n)
	}
	switch {
	case r.bad:
		return fetched{}, errShortAnswer
	case topics != 1 || parts != 1 || topic != tp.Topic || int(part) != tp.Part:
		return fetched{}, fmt.Errorf("the broker's answer is of %d topics and %s/%d", topics, topic, part)
	case code != 0:
		return fetched{}, code
	}
	return f, nil
}

var errShortAnswer = errors.New("the broker's answer to a fetch ends too early")

// numbers are fields of an answer. What does not fit leaves them bad, and empty.
type numbers struct {
	b   []byte
	bad bool
}

func (r *numbers) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *numbers) int16() int16 {
	if b := r.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b)) //nolint:gosec // two's complement on the wire
	}
	return 0
}

func (r *numbers) int32() int32 {
	if b := r.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b)) //nolint:gosec // two's complement on the wire
	}
	return 0
}
