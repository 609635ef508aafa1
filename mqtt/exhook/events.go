package exhook

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

const (
	// maxMillis is the largest time that counts as one, in ms since the epoch.
	maxMillis = 1 << 52
)

func refuse(c mqtt.Counter, format string, args ...any) error {
	return &mqtt.Refusal{Counter: c, Err: fmt.Errorf(format, args...)}
}

// head leaves id and time of an event that is no publish to ingest: the broker tells neither.
func (s *Server) head(node []byte) event.Head {
	h := event.Head{Source: s.cfg.Source}
	if n := s.node(node); n != "" {
		h.Source += "/" + n
	}
	return h
}

func (s *Server) node(told []byte) string {
	if s.cfg.Node != "" {
		return s.cfg.Node
	}
	return text(told)
}

// text makes text of what should be text.
func text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

func client(b []byte) (event.ClientID, error) {
	c, err := event.ParseClientID(string(b))
	if err != nil {
		return "", refuse(mqtt.CountRefusedClient, "%w", err)
	}
	return c, nil
}

func (s *Server) published(r *exhookpb.MessagePublishRequest) (event.Event, error) {
	m := r.GetMessage()
	topic, err := event.ParseTopic(string(m.GetTopic()))
	if err != nil {
		return nil, refuse(mqtt.CountRefusedTopic, "%w", err)
	}
	if m.GetQos() > 2 {
		return nil, refuse(mqtt.CountRefusedRequest, "qos %d", m.GetQos())
	}
	e := event.Published{
		Head: s.head(m.GetNode()), Topic: topic, QoS: event.QoS(m.GetQos()), Payload: m.GetPayload(), //nolint:gosec // up to 2
	}
	if e.Payload == nil {
		e.Payload = []byte{}
	}
	if e.ID, e.At, err = identity(m); err != nil {
		return nil, err
	}
	if c, err := event.ParseClientID(string(m.GetFrom())); err == nil { // else nobody who could be named
		e.Sender = c
	}
	properties(&e, r)
	// The broker tells user properties from v3 on only; before, our own replays are known by their client id.
	if _, _, ok := s.cfg.Secret.Verify(topic.String(), e.Payload, e.Properties.User); ok {
		return nil, &mqtt.Refusal{Counter: mqtt.CountReplay, Err: mqtt.ErrOwn}
	}
	if mqtt.Claims(e.Properties.User) {
		s.cfg.Count(mqtt.CountForged)
	}
	return e, nil
}

// identity is a message's id and the time of its publish.
func identity(m *exhookpb.Message) (event.ID, time.Time, error) {
	id, err := event.ParseID(string(m.GetId()))
	if err != nil {
		return event.ID{}, time.Time{}, refuse(mqtt.CountRefusedID, "%w", err)
	}
	if ms := m.GetTimestamp(); ms > 0 && ms <= maxMillis {
		return id, time.UnixMilli(int64(ms)), nil
	}
	at := id.Time().Truncate(time.Millisecond)
	if at.UnixMilli() > maxMillis {
		return event.ID{}, time.Time{}, refuse(mqtt.CountRefusedID, "message id %s: neither it nor the message tells a time", id)
	}
	return id, at, nil
}

// properties are what v3 tells of a publish. The broker writes numbers as decimal text; an expiry that is none is left out, so that
// the message is kept too long rather than not at all.
func properties(e *event.Published, r *exhookpb.MessagePublishRequest) {
	for _, p := range r.GetUserProps() {
		e.Properties.User = append(e.Properties.User, event.UserProperty{Key: text(p.GetName()), Value: text(p.GetValue())})
	}
	for _, p := range r.GetProps() {
		switch string(p.GetName()) {
		case "Content-Type":
			e.Properties.ContentType = text(p.GetValue())
		case "Response-Topic":
			e.Properties.ResponseTopic = text(p.GetValue())
		case "Correlation-Data":
			if len(p.GetValue()) > 0 {
				e.Properties.CorrelationData = p.GetValue()
			}
		case "Payload-Format-Indicator":
			if string(p.GetValue()) == "1" {
				e.Properties.PayloadFormat = 1
			}
		case "Message-Expiry-Interval":
			if seconds, err := strconv.ParseUint(string(p.GetValue()), 10, 32); err == nil {
				e.Expiry = time.Duration(seconds) * time.Second
			}
		}
	}
}

// acked takes the id as it comes: an ack of a retained delivery has the time of the delivery, and must find its message.
func (s *Server) acked(r *exhookpb.MessageAckedRequest) (event.Event, error) {
	m := r.GetMessage()
	own := s.isOwn(m.GetFrom())
	if own && !s.cfg.Envelope {
		// The broker gave the replay a new id, and what is stored has another: there is nothing that this could remove.
		return nil, &mqtt.Refusal{Counter: mqtt.CountReplay, Err: mqtt.ErrOwn}
	}
	c, err := client(r.GetClientinfo().GetClientid())
	if err != nil {
		return nil, err
	}
	topic, id, err := named(m)
	if err != nil {
		return nil, err
	}
	e := event.Acked{Head: s.head(m.GetNode()), Topic: topic, Client: c, Message: id}
	if own {
		e.Replayed, e.Topic = true, s.original(mqtt.Envelope{Topic: topic})
		if k := s.aliases.Get(id); !k.message.IsZero() {
			e.Message, e.Topic = k.message, k.topic
		} else {
			e.Message, e.BrokerID = event.ID{}, id // another server has opened the envelope: its alias is in the log
		}
	}
	return e, nil
}

// dropped names the sender: the broker tells nobody else, since mostly there was nobody to deliver to.
func (s *Server) dropped(r *exhookpb.MessageDroppedRequest) (event.Event, error) {
	m := r.GetMessage()
	c, err := client(m.GetFrom())
	if err != nil {
		return nil, err
	}
	topic, id, err := named(m)
	if err != nil {
		return nil, err
	}
	return event.Dropped{Head: s.head(m.GetNode()), Topic: topic, Client: c, Message: id, Reason: text(r.GetReason())}, nil
}

// named is the message that a hook tells of.
func named(m *exhookpb.Message) (topic event.Topic, id event.ID, err error) {
	if topic, err = event.ParseTopic(string(m.GetTopic())); err != nil {
		return topic, id, refuse(mqtt.CountRefusedTopic, "%w", err)
	}
	if id, err = event.ParseID(string(m.GetId())); err != nil {
		return topic, id, refuse(mqtt.CountRefusedID, "%w", err)
	}
	return topic, id, nil
}

func (s *Server) connected(r *exhookpb.ClientConnectedRequest) (event.Event, error) {
	i := r.GetClientinfo()
	c, err := client(i.GetClientid())
	if err != nil {
		return nil, err
	}
	return event.Connected{
		Head: s.head(i.GetNode()), Client: c, ExpiryInterval: -1, Node: s.node(i.GetNode()), Username: text(i.GetUsername()),
	}, nil
}

func (s *Server) disconnected(r *exhookpb.ClientDisconnectedRequest) (event.Event, error) {
	i := r.GetClientinfo()
	c, err := client(i.GetClientid())
	if err != nil {
		return nil, err
	}
	return event.Disconnected{Head: s.head(i.GetNode()), Client: c, Reason: text(r.GetReason())}, nil
}

func (s *Server) subscribed(r *exhookpb.SessionSubscribedRequest) (event.Event, error) {
	i, o := r.GetClientinfo(), r.GetSubopts()
	c, err := client(i.GetClientid())
	if err != nil {
		return nil, err
	}
	f, err := filter(r.GetTopic(), o.GetShare())
	if err != nil {
		return nil, err
	}
	if o.GetQos() > 2 || o.GetRh() > 2 {
		return nil, refuse(mqtt.CountRefusedRequest, "subscription with qos %d and retain handling %d", o.GetQos(), o.GetRh())
	}
	e := event.Subscribed{Head: s.head(i.GetNode()), Client: c, Filter: f, QoS: event.QoS(o.GetQos())} //nolint:gosec // up to 2
	if o != nil {
		e.Options = &event.SubOptions{
			RetainHandling:    byte(o.GetRh()), //nolint:gosec // up to 2
			RetainAsPublished: o.GetRap() != 0, NoLocal: o.GetNl() != 0,
		}
	}
	return e, nil
}

func (s *Server) unsubscribed(r *exhookpb.SessionUnsubscribedRequest) (event.Event, error) {
	i := r.GetClientinfo()
	c, err := client(i.GetClientid())
	if err != nil {
		return nil, err
	}
	f, err := filter(r.GetTopic(), nil)
	if err != nil {
		return nil, err
	}
	return event.Unsubscribed{Head: s.head(i.GetNode()), Client: c, Filter: f}, nil
}

// filter puts the group of a shared subscription back in front of the filter, where newer brokers leave it.
func filter(topic, share []byte) (event.Filter, error) {
	whole := string(topic)
	if len(share) > 0 && !strings.HasPrefix(whole, "$share/") {
		whole = "$share/" + string(share) + "/" + whole
	}
	f, err := event.ParseFilter(whole)
	if err != nil {
		return event.Filter{}, refuse(mqtt.CountRefusedFilter, "%w", err)
	}
	return f, nil
}

func (s *Server) isOwn(from []byte) bool {
	return s.cfg.Own != nil && s.cfg.Own(event.ClientID(from))
}
