package webhook

import (
	"encoding/json"
	"net/http"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// emqxHook reads what the plugin emqx_web_hook posts.
type emqxHook struct{ maker }

// hookEvent is the JSON of all its actions.
type hookEvent struct {
	Action   string `json:"action"`
	Node     string `json:"node"`
	ClientID string `json:"clientid"`
	Username string `json:"username"` // null where there is none

	TS         int64   `json:"ts"`
	Topic      string  `json:"topic"`
	QoS        byte    `json:"qos"`
	Retain     bool    `json:"retain"`
	Payload    *string `json:"payload"`
	FromClient string  `json:"from_client_id"`

	Options struct {
		QoS   *byte  `json:"qos"`
		Share string `json:"share"`
		RH    byte   `json:"rh"`
		RAP   byte   `json:"rap"`
		NL    byte   `json:"nl"`
		New   *bool  `json:"is_new"`
	} `json:"opts"`

	Reason         string `json:"reason"`
	ConnectedAt    int64  `json:"connected_at"`
	DisconnectedAt int64  `json:"disconnected_at"`
}

func (emqxHook) answer(http.Header) any { return map[string]string{"result": "ok"} }

func (f emqxHook) events(_ http.Header, item json.RawMessage) ([]event.Event, []error) {
	var r hookEvent
	if err := json.Unmarshal(item, &r); err != nil {
		return nil, []error{refuse(mqtt.CountRefusedJSON, "read an event: %w", err)}
	}
	return one(f.event(r))
}

func (f emqxHook) event(r hookEvent) (event.Event, error) {
	switch r.Action {
	case "message_publish":
		return f.published(message{
			node: r.Node, sender: r.FromClient, topic: r.Topic, at: r.TS, qos: r.QoS, retain: r.Retain, payload: r.Payload,
		})
	case "session_subscribed", "session_unsubscribed":
		return f.session(r)
	case "client_connected", "client_disconnected":
		return f.connection(r)
	case "message_acked":
		if _, err := f.client(r.ClientID); err != nil {
			return nil, err
		}
		return nil, refuse(mqtt.CountUnmappedAck, "message_acked by %.80q: the plugin tells no message ids: leave the action out", r.ClientID)
	case "":
		return nil, refuse(mqtt.CountRefusedJSON, "the JSON has no field action")
	}
	return nil, refuse(mqtt.CountIgnored, "%.80q is not needed", r.Action)
}

func (f emqxHook) session(r hookEvent) (event.Event, error) {
	c, err := f.client(r.ClientID)
	if err != nil {
		return nil, err
	}
	filter, err := f.filter(r.Options.Share, r.Topic)
	if err != nil {
		return nil, err
	}
	if r.Action == "session_unsubscribed" {
		return event.Unsubscribed{Head: f.head(r.Node, 0), Client: c, Filter: filter}, nil
	}
	o := r.Options
	if o.QoS == nil || *o.QoS > 2 || o.RH > 2 || o.RAP > 1 || o.NL > 1 {
		return nil, refuse(mqtt.CountRefusedJSON, "session_subscribed of %.80q: its opts cannot be", r.ClientID)
	}
	e := event.Subscribed{
		Head: f.head(r.Node, 0), Client: c, Filter: filter, QoS: event.QoS(*o.QoS),
		Options: &event.SubOptions{RetainHandling: o.RH, RetainAsPublished: o.RAP == 1, NoLocal: o.NL == 1},
	}
	if o.New != nil {
		e.New = event.KnownBool(*o.New)
	}
	return e, nil
}

func (f emqxHook) connection(r hookEvent) (event.Event, error) {
	c, err := f.client(r.ClientID)
	if err != nil {
		return nil, err
	}
	at := millis(r.ConnectedAt)
	if r.Action == "client_connected" {
		return event.Connected{
			Head: f.head(r.Node, r.ConnectedAt), Client: c, ConnectedAt: at, ExpiryInterval: -1, Node: r.Node, Username: r.Username,
		}, nil
	}
	return event.Disconnected{
		Head: f.head(r.Node, r.DisconnectedAt), Client: c, Reason: r.Reason, ConnectedAt: at, DisconnectedAt: millis(r.DisconnectedAt),
	}, nil
}
