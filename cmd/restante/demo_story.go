package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/restante/restante/mqtt/device"
)

// story is the demonstration: one method a step.
type story struct {
	t    *teller
	dir  string
	logs io.Writer
	cmd  *exec.Cmd
	at   stackAddresses
}

// patience is how long a client waits for a message that must come, quiet how long for one that must not.
const (
	patience = 10 * time.Second
	quiet    = 1500 * time.Millisecond
)

func (s *story) connect(ctx context.Context, id string) (*device.Device, error) {
	return device.Connect(ctx, device.Options{Addr: s.at.mqtt(), ClientID: id})
}

// publish publishes payloads to topics, one after another, at QoS 1; each waits for its PUBACK.
func (s *story) publish(ctx context.Context, topicAndPayload ...string) error {
	d, err := s.connect(ctx, "publisher")
	if err != nil {
		return err
	}
	defer d.Close()
	for m := range slices.Chunk(topicAndPayload, 2) {
		topic, payload := m[0], m[len(m)-1]
		if err := d.Publish(ctx, topic, 1, payload); err != nil {
			return err
		}
		s.t.saw("PUBACK  %s  %q", topic, payload)
	}
	return nil
}

// receive takes n messages and says what it got.
func (s *story) receive(ctx context.Context, d *device.Device, n int) ([]device.Message, error) {
	var got []device.Message
	for len(got) < n {
		m, err := d.Next(ctx, patience)
		if errors.Is(err, device.ErrNothing) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, m)
		s.t.saw("got     %s  %q  offline-msgid=%s  offline-remaining=%s", m.Topic, m.Payload, m.User["offline-msgid"], m.User["offline-remaining"])
	}
	return got, nil
}

// nothing fails when a message comes.
func (s *story) nothing(ctx context.Context, d *device.Device, what string) error {
	m, err := d.Next(ctx, quiet)
	switch {
	case errors.Is(err, device.ErrNothing):
		s.t.saw("%s", what)
		return nil
	case err != nil:
		return err
	}
	return &mismatch{s.t.steps, what, fmt.Sprintf("%q on %s", m.Payload, m.Topic)}
}

func payloads(ms []device.Message) string {
	var out []string
	for _, m := range ms {
		out = append(out, m.Payload)
	}
	return strings.Join(out, ", ")
}

// stored reports whether all messages are replays, each with an id of its own, in the order of the ids.
func stored(ms []device.Message) bool {
	var ids []string
	for _, m := range ms {
		ids = append(ids, m.User["offline-msgid"])
	}
	return !slices.Contains(ids, "") && slices.IsSorted(ids) && len(slices.Compact(ids)) == len(ms)
}

func (s *story) publishToNobody(ctx context.Context) error {
	s.t.step("three QoS 1 messages to t/1, nobody is there")
	return s.publish(ctx, "t/1", "one", "t/1", "two", "t/1", "three")
}

func (s *story) showRows(ctx context.Context) error {
	s.t.step("the rows in mqtt_msg (select * from mqtt_msg)")
	columns, rows, err := s.awaitRows(ctx, 3)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(s.t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "    %s\n", strings.Join(columns, "\t"))
	for _, r := range rows {
		fmt.Fprintf(w, "    %s\n", strings.Join(r, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return s.t.expect(len(rows) == 3, "3 rows", "%d rows", len(rows))
}

func (s *story) subscribe(ctx context.Context) error {
	s.t.step("a client subscribes t/1 at QoS 1 and gets the three, in order")
	d, err := s.connect(ctx, "device-1")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Subscribe(ctx, "t/1", 1); err != nil {
		return err
	}
	got, err := s.receive(ctx, d, 3)
	if err != nil {
		return err
	}
	if err := s.t.expect(payloads(got) == "one, two, three" && stored(got), "one, two, three, each with its offline-msgid, in order",
		"%s (%d messages)", payloads(got), len(got)); err != nil {
		return err
	}
	return s.nothing(ctx, d, "nothing came twice")
}

func (s *story) rowsAreGone(ctx context.Context) error {
	s.t.step("the rows are gone after the acks")
	_, rows, err := s.awaitRows(ctx, 0)
	if err != nil {
		return err
	}
	return s.t.expect(len(rows) == 0, "0 rows", "%d rows in mqtt_msg", len(rows))
}

func (s *story) wildcard(ctx context.Context) error {
	s.t.step("messages to t/2 and t/3/x reach a later subscriber of t/#")
	if err := s.publish(ctx, "t/2", "for two", "t/3/x", "for three"); err != nil {
		return err
	}
	d, err := s.connect(ctx, "device-2")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Subscribe(ctx, "t/#", 1); err != nil {
		return err
	}
	got, err := s.receive(ctx, d, 2)
	if err != nil {
		return err
	}
	slices.SortFunc(got, func(a, b device.Message) int { return strings.Compare(a.Topic, b.Topic) })
	ok := len(got) == 2 && got[0].Topic == "t/2" && got[1].Topic == "t/3/x" && got[0].User["offline-msgid"] != "" && got[1].User["offline-msgid"] != ""
	if err := s.t.expect(ok, "one message on t/2 and one on t/3/x", "%s (%d messages)", payloads(got), len(got)); err != nil {
		return err
	}
	return s.nothing(ctx, d, "nothing came twice") // the client stays until its acks are out
}

func (s *story) online(ctx context.Context) error {
	s.t.step("a message published while a client is online is delivered once, never replayed, and elided")
	const elided = "restante_writer_elided_total"
	if err := pause(ctx, quiet); err != nil { // the acks of the step before settle
		return err
	}
	before, err := s.metric(ctx, elided)
	if err != nil {
		return err
	}
	d, err := s.connect(ctx, "device-3")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := errors.Join(d.Subscribe(ctx, "t/4", 1), s.publish(ctx, "t/4", "live")); err != nil {
		return err
	}
	got, err := s.receive(ctx, d, 1)
	if err != nil {
		return err
	}
	if err := s.t.expect(len(got) == 1 && got[0].User["offline-msgid"] == "", "the live message, without offline-msgid", "delivered live: %s", payloads(got)); err != nil {
		return err
	}
	if err := s.nothing(ctx, d, "delivered once"); err != nil {
		return err
	}
	d.Close()
	again, err := s.connect(ctx, "device-4")
	if err != nil {
		return err
	}
	defer again.Close()
	if err := again.Subscribe(ctx, "t/4", 1); err != nil {
		return err
	}
	if err := s.nothing(ctx, again, "not replayed to a later subscriber"); err != nil {
		return err
	}
	_, rows, err := s.rows(ctx)
	if err != nil {
		return err
	}
	after, err := s.metric(ctx, elided)
	if err != nil {
		return err
	}
	return s.t.expect(after-before == 1 && len(rows) == 0, "1 message elided, no row written", "%s: %g -> %g, rows in mqtt_msg: %d", elided, before, after, len(rows))
}

func (s *story) killed(ctx context.Context) error {
	s.t.step("the stack is killed (kill -9) and started again on the same data")
	if err := s.publish(ctx, "t/5", "stored before the kill"); err != nil {
		return err
	}
	if _, rows, err := s.awaitRows(ctx, 1); err != nil || len(rows) != 1 {
		return errors.Join(err, s.t.expect(len(rows) == 1, "1 row in mqtt_msg", "%d rows", len(rows)))
	}
	s.t.saw("1 row in mqtt_msg")
	if err := s.publish(ctx, "t/5", "just before the kill"); err != nil {
		return err
	}
	s.kill()
	s.t.saw("killed right after the last PUBACK")
	if err := s.start(ctx); err != nil {
		return err
	}
	s.t.saw("started again, mqtt %s", s.at.mqtt())
	d, err := s.connect(ctx, "device-5")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Subscribe(ctx, "t/5", 1); err != nil {
		return err
	}
	got, err := s.receive(ctx, d, 2)
	if err != nil {
		return err
	}
	if err := s.t.expect(payloads(got) == "stored before the kill, just before the kill" && stored(got), "both messages, in order", "%s (%d messages)", payloads(got), len(got)); err != nil {
		return err
	}
	_, rows, err := s.awaitRows(ctx, 0)
	if err != nil {
		return err
	}
	return s.t.expect(len(rows) == 0, "0 rows", "%d rows in mqtt_msg after the acks", len(rows))
}
