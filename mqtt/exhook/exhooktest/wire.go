package exhooktest

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

// codec is gRPC's own for protobuf, but for answers to a publish.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: no protobuf message", v)
	}
	return proto.Marshal(m)
}

func (codec) Unmarshal(data []byte, v any) error {
	switch v := v.(type) {
	case *answer:
		return v.read(data)
	case proto.Message:
		return proto.Unmarshal(data, v)
	}
	return fmt.Errorf("decode %T: no protobuf message", v)
}

// answer is a ValuedResponse, read by EMQX's own field numbers and not by our definition.
type answer struct {
	kind    exhookpb.ValuedResponse_Type
	message *message // nil = none
}

// message is what EMQX takes of the message in an answer.
type message struct {
	qos     byte
	topic   string
	payload []byte
	// allowPublish is the header of that name, "" = not there.
	allowPublish string
}

func messageOf(m *exhookpb.Message) message {
	return message{qos: byte(m.GetQos()), topic: string(m.GetTopic()), payload: m.GetPayload()} //nolint:gosec // up to 2
}

// assign changes what the next server is asked about.
func (m message) assign(to *exhookpb.Message) {
	to.Qos, to.Topic, to.Payload = uint32(m.qos), []byte(m.topic), m.payload
}

func (a *answer) read(data []byte) error {
	return fields(data, func(n int, number uint64, text []byte) error {
		switch n {
		case 1:
			a.kind = exhookpb.ValuedResponse_Type(number) //nolint:gosec // three values
		case 4:
			a.message = &message{}
			return a.message.read(text)
		}
		return nil
	})
}

func (m *message) read(data []byte) error {
	return fields(data, func(n int, number uint64, text []byte) error {
		switch n {
		case 3:
			if number > 2 {
				return fmt.Errorf("read an answer: qos %d", number)
			}
			m.qos = byte(number)
		case 5:
			m.topic = string(text)
		case 6:
			m.payload = text
		case 8:
			var key, value string
			err := fields(text, func(n int, _ uint64, text []byte) error {
				switch n {
				case 1:
					key = string(text)
				case 2:
					value = string(text)
				}
				return nil
			})
			if key == "allow_publish" {
				m.allowPublish = value
			}
			return err
		}
		return nil
	})
}

// fields calls a function for each field of a message: a number, or bytes.
func fields(data []byte, each func(n int, number uint64, text []byte) error) error {
	for len(data) > 0 {
		n, typ, size := protowire.ConsumeTag(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		var number uint64
		var text []byte
		switch typ { //nolint:exhaustive // EMQX's messages have no others
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			text, size = protowire.ConsumeBytes(data)
		default:
			return errors.New("read an answer: a field that is neither number nor text")
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		if err := each(int(n), number, append([]byte(nil), text...)); err != nil {
			return err
		}
	}
	return nil
}

// also adds fields that our definition leaves out, since nobody needs them, and that EMQX sends.
func also(m proto.Message, fields ...[]byte) {
	r := m.ProtoReflect()
	all := r.GetUnknown()
	for _, f := range fields {
		all = append(all, f...)
	}
	r.SetUnknown(all)
}

func text(n protowire.Number, value string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), value)
}

func number(n protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), value)
}

func inner(n protowire.Number, fields ...[]byte) []byte {
	var all []byte
	for _, f := range fields {
		all = append(all, f...)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), all)
}
