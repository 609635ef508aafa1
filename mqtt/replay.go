// Package mqtt is the broker edge over MQTT 5: the source that receives events, the publisher that hands stored messages back,
// and the marks by which both sides know a replay.
package mqtt

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
)

// The user properties of a replay. They come first; the message's own follow, whatever their names.
const (
	PropMessageID = "offline-msgid"     // the message's original id
	PropClientID  = "offline-clientid"  // whom the replay is for
	PropArrived   = "offline-arrived"   // when the message was published, ms since the epoch
	PropRemaining = "offline-remaining" // how many messages wait behind it, 0 = caught up
	PropMAC       = "offline-mac"       // proves that the replay is ours
)

const (
	minKey  = 16 // bytes
	macSize = 16 // bytes: HMAC-SHA256, truncated
)

// Secret signs replays and recognises them. While keys are rotated it holds two: the first signs, both verify.
// The zero Secret signs nothing and recognises nothing.
type Secret struct{ keys [][]byte }

// NewSecret makes a secret of one or two keys of at least 16 bytes.
func NewSecret(keys ...[]byte) (Secret, error) {
	if len(keys) == 0 || len(keys) > 2 {
		return Secret{}, fmt.Errorf("replay secret: has %d keys, want one, or two while rotating", len(keys))
	}
	for i, k := range keys {
		if len(k) < minKey {
			return Secret{}, fmt.Errorf("replay secret: key %d has %d bytes, want at least %d", i+1, len(k), minKey)
		}
	}
	return Secret{keys}, nil
}

// LoadSecret reads a secret file: one key a line, the signing key first. The file's mode is not judged, since a mounted
// Kubernetes secret is readable for all in its container.
func LoadSecret(path string) (Secret, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return Secret{}, fmt.Errorf("read replay secret: %w", err)
	}
	var keys [][]byte
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, []byte(line))
		}
	}
	s, err := NewSecret(keys...)
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// LoadOrCreateSecret reads the secret file, or makes one with a random key, mode 0600. The caller holds the lock of the
// directory: two processes that create at once would end with different keys.
func LoadOrCreateSecret(path string) (Secret, error) {
	s, err := LoadSecret(path)
	if !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return Secret{}, fmt.Errorf("create replay secret: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename; otherwise only litter
	_, err = fmt.Fprintln(f, rand.Text()+rand.Text())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return Secret{}, fmt.Errorf("write replay secret: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return Secret{}, fmt.Errorf("write replay secret: %w", err)
	}
	return LoadSecret(path)
}

// IsZero reports whether there is no key.
func (s Secret) IsZero() bool { return len(s.keys) == 0 }

// Properties are the user properties of a replay of m to a client on a topic (the one that it is published to): ours, then
// the message's own. Without a key the MAC is left out.
func (s Secret) Properties(to event.ClientID, topic string, m pipeline.Outgo) []event.UserProperty {
	p := make([]event.UserProperty, 0, 5+len(m.Properties.User))
	p = append(p,
		event.UserProperty{Key: PropMessageID, Value: m.ID.String()},
		event.UserProperty{Key: PropClientID, Value: string(to)},
		event.UserProperty{Key: PropArrived, Value: strconv.FormatInt(m.Arrived.UnixMilli(), 10)},
		event.UserProperty{Key: PropRemaining, Value: strconv.Itoa(m.Remaining)},
	)
	if !s.IsZero() {
		sum := mac(s.keys[0], m.ID.String(), string(to), topic, m.Payload)
		p = append(p, event.UserProperty{Key: PropMAC, Value: base64.RawURLEncoding.EncodeToString(sum)})
	}
	return append(p, m.Properties.User...)
}

// Verify tells whether a publish is a replay of ours, of which message and for whom. Only the first property of each name
// counts: those behind are the message's own, which a device may have named as it likes.
func (s Secret) Verify(topic string, payload []byte, user []event.UserProperty) (event.ID, event.ClientID, bool) {
	id, client, sum := first(user, PropMessageID), first(user, PropClientID), first(user, PropMAC)
	if id == "" || client == "" || sum == "" {
		return event.ID{}, "", false
	}
	got, err := base64.RawURLEncoding.DecodeString(sum)
	if err != nil || len(got) != macSize {
		return event.ID{}, "", false
	}
	for _, key := range s.keys {
		if hmac.Equal(got, mac(key, id, client, topic, payload)) {
			parsed, err := event.ParseID(id)
			return parsed, event.ClientID(client), err == nil
		}
	}
	return event.ID{}, "", false
}

// Claims tells whether a publish says of itself that it is a replay, true or not.
func Claims(user []event.UserProperty) bool { return first(user, PropMAC) != "" }

func first(user []event.UserProperty, name string) string {
	for _, p := range user {
		if p.Key == name {
			return p.Value
		}
	}
	return ""
}

// mac covers all that a device could otherwise put our id onto. Each field is preceded by its length, so that bytes cannot
// move from one to the next.
func mac(key []byte, id, client, topic string, payload []byte) []byte {
	h := hmac.New(sha256.New, key)
	field(h, id)
	field(h, client)
	field(h, topic)
	field(h, payload)
	return h.Sum(nil)[:macSize]
}

func field[T string | []byte](h hash.Hash, v T) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(v)))
	h.Write(n[:])
	h.Write([]byte(v))
}
