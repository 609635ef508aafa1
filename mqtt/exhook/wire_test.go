package exhook_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// The requests as EMQX defines them, by the names of its fields: numbers that do not come from our own definition.
var (
	metaFields   = fields{"node": {1, nil}, "version": {2, nil}, "sysdescr": {3, nil}, "cluster_name": {4, nil}}
	brokerFields = fields{"version": {1, nil}, "sysdescr": {2, nil}, "uptime": {3, nil}, "datetime": {4, nil}}
	clientFields = fields{
		"node": {1, nil}, "clientid": {2, nil}, "username": {3, nil}, "password": {4, nil}, "peerhost": {5, nil}, "sockport": {6, nil},
		"protocol": {7, nil}, "mountpoint": {8, nil}, "is_superuser": {9, nil}, "anonymous": {10, nil}, "cn": {11, nil}, "dn": {12, nil},
		"peerport": {13, nil},
	}
	messageFields = fields{
		"node": {1, nil}, "id": {2, nil}, "qos": {3, nil}, "from": {4, nil}, "topic": {5, nil}, "payload": {6, nil}, "timestamp": {7, nil},
		"headers": {8, fields{"": {0, nil}}},
	}
	optionFields   = fields{"qos": {1, nil}, "share": {2, nil}, "rh": {3, nil}, "rap": {4, nil}, "nl": {5, nil}}
	propertyFields = fields{"name": {1, nil}, "value": {2, nil}}

	requests = map[string]fields{
		"OnProviderLoaded":      {"broker": {1, brokerFields}, "meta": {2, metaFields}},
		"OnProviderUnloaded":    {"meta": {1, metaFields}},
		"OnClientConnected":     {"clientinfo": {1, clientFields}, "meta": {2, metaFields}},
		"OnClientDisconnected":  {"clientinfo": {1, clientFields}, "reason": {2, nil}, "meta": {3, metaFields}},
		"OnSessionSubscribed":   {"clientinfo": {1, clientFields}, "topic": {2, nil}, "subopts": {3, optionFields}, "meta": {4, metaFields}},
		"OnSessionUnsubscribed": {"clientinfo": {1, clientFields}, "topic": {2, nil}, "meta": {3, metaFields}},
		"OnMessagePublish": {
			"message": {1, messageFields}, "meta": {2, metaFields}, "props": {3, propertyFields}, "user_props": {4, propertyFields},
		},
		"OnMessageAcked":   {"clientinfo": {1, clientFields}, "message": {2, messageFields}, "meta": {3, metaFields}},
		"OnMessageDropped": {"message": {1, messageFields}, "reason": {2, nil}, "meta": {3, metaFields}},
	}
)

type fields map[string]struct {
	number protowire.Number
	inner  fields
}

// obj is a message by the names of its fields: string, []byte, uint64, bool, obj, []obj, and for a map map[string]string.
type obj map[string]any

// encode writes a request as a broker would.
func encode(t testing.TB, hook string, o obj) []byte {
	t.Helper()
	f, ok := requests[hook]
	if !ok {
		t.Fatalf("no request is called %s", hook)
	}
	return encodeObj(t, f, o)
}

func encodeObj(t testing.TB, f fields, o obj) []byte {
	t.Helper()
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(o)) {
		d, ok := f[name]
		if !ok {
			t.Fatalf("no field is called %s", name)
		}
		put := func(v []byte) {
			b = protowire.AppendTag(b, d.number, protowire.BytesType)
			b = protowire.AppendBytes(b, v)
		}
		number := func(v uint64) {
			b = protowire.AppendTag(b, d.number, protowire.VarintType)
			b = protowire.AppendVarint(b, v)
		}
		switch v := o[name].(type) {
		case string:
			put([]byte(v))
		case []byte:
			put(v)
		case uint64:
			number(v)
		case bool:
			number(protowire.EncodeBool(v))
		case obj:
			put(encodeObj(t, d.inner, v))
		case []obj:
			for _, one := range v {
				put(encodeObj(t, d.inner, one))
			}
		case map[string]string:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), k)
				put(protowire.AppendString(protowire.AppendTag(entry, 2, protowire.BytesType), v[k]))
			}
		default:
			t.Fatalf("%s: %T", name, v)
		}
	}
	return b
}

// captured is a line of a capture: a request in protobuf's JSON.
type captured struct {
	Hook   string          `json:"hook"`
	RecvMS int64           `json:"recv_ms"`
	Req    json.RawMessage `json:"req"`
}

// object turns protobuf's JSON into what encode takes.
func object(t testing.TB, f fields, data []byte) obj {
	t.Helper()
	var in map[string]any
	if err := json.Unmarshal(data, &in); err != nil {
		t.Fatal(err)
	}
	return objectOf(t, f, in)
}

func objectOf(t testing.TB, f fields, in map[string]any) obj {
	t.Helper()
	out := obj{}
	for name, v := range in {
		switch v := v.(type) {
		case map[string]any:
			if name != "headers" {
				out[name] = objectOf(t, f[name].inner, v)
				continue
			}
			m := map[string]string{}
			for k, one := range v {
				m[k] = fmt.Sprint(one)
			}
			out[name] = m
		case string:
			switch name {
			case "payload":
				b, err := base64.StdEncoding.DecodeString(v)
				if err != nil {
					t.Fatal(err)
				}
				out[name] = b
			case "timestamp":
				n, err := strconv.ParseUint(v, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				out[name] = n
			default:
				out[name] = v
			}
		case float64:
			out[name] = uint64(v)
		default:
			out[name] = v
		}
	}
	return out
}
