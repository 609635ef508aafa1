package exhook

import (
	"fmt"

	"google.golang.org/protobuf/proto"
)

// codec is gRPC's own for protobuf, but that it forgets the fields it does not know, a client's password among them.
type codec struct{}

// Name is the content type that brokers send, application/grpc+proto.
func (codec) Name() string { return "proto" }

// Marshal writes a message.
func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: no protobuf message", v)
	}
	return proto.Marshal(m)
}

// Unmarshal reads a message. What it returns as an error quotes nothing of it.
func (codec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode %T: no protobuf message", v)
	}
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
}
