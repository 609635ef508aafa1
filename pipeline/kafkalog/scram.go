package kafkalog

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
)

// scram is SCRAM (RFC 5802) as Kafka speaks it: no channel binding, names and passwords as their UTF-8 bytes.
type scram struct {
	name           string
	hash           func() hash.Hash
	user, password string
}

// Brokers ask for at least 4096 iterations; more than this is not a login but an attack on the client.
const (
	minIterations = 4096
	maxIterations = 1_000_000
)

func scram256(s SASL) sasl.Mechanism { return &scram{"SCRAM-SHA-256", sha256.New, s.User, s.Password} }

func scram512(s SASL) sasl.Mechanism { return &scram{"SCRAM-SHA-512", sha512.New, s.User, s.Password} }

// Name is the mechanism's name in the handshake.
func (s *scram) Name() string { return s.name }

// Start sends the client's first message.
func (s *scram) Start(context.Context) (sasl.StateMachine, []byte, error) {
	nonce := rand.Text()
	user := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s.user)
	login := &scramLogin{scram: s, nonce: nonce, first: "n=" + user + ",r=" + nonce}
	return login, []byte("n,," + login.first), nil
}

type scramLogin struct {
	*scram
	nonce  string
	first  string // the client's first message, bare
	server []byte // the signature that the broker must show; nil until the proof is sent
}

// Next answers the broker's challenge, then checks its signature: a broker that does not know the password is refused.
func (s *scramLogin) Next(_ context.Context, challenge []byte) (bool, []byte, error) {
	fields := map[string]string{}
	for f := range strings.SplitSeq(string(challenge), ",") {
		if k, v, ok := strings.Cut(f, "="); ok {
			fields[k] = v
		}
	}
	if e := fields["e"]; e != "" {
		return false, nil, fmt.Errorf("log in as %s: the broker says %s", s.user, e)
	}
	if s.server != nil {
		shown, err := base64.StdEncoding.DecodeString(fields["v"])
		if err != nil || subtle.ConstantTimeCompare(shown, s.server) != 1 {
			return false, nil, errors.New("log in: the broker does not prove that it knows the password")
		}
		return true, nil, nil
	}
	proof, err := s.prove(fields, string(challenge))
	if err != nil {
		return false, nil, fmt.Errorf("log in as %s: %w", s.user, err)
	}
	return false, proof, nil
}

func (s *scramLogin) prove(fields map[string]string, challenge string) ([]byte, error) {
	nonce := fields["r"]
	if !strings.HasPrefix(nonce, s.nonce) || nonce == s.nonce {
		return nil, errors.New("the broker's nonce does not continue ours")
	}
	salt, err := base64.StdEncoding.DecodeString(fields["s"])
	if err != nil || len(salt) == 0 {
		return nil, errors.New("the broker's salt is not base64")
	}
	iterations, err := strconv.Atoi(fields["i"])
	if err != nil || iterations < minIterations || iterations > maxIterations {
		return nil, fmt.Errorf("the broker asks for %q iterations, not %d to %d", fields["i"], minIterations, maxIterations)
	}
	salted, err := pbkdf2.Key(s.hash, s.password, salt, iterations, s.hash().Size())
	if err != nil {
		return nil, err
	}
	final := "c=biws,r=" + nonce // biws = "n,,": no channel binding
	signed := s.first + "," + challenge + "," + final
	clientKey := s.mac(salted, "Client Key")
	stored := s.hash()
	stored.Write(clientKey)
	proof := make([]byte, len(clientKey))
	subtle.XORBytes(proof, clientKey, s.mac(stored.Sum(nil), signed))
	s.server = s.mac(s.mac(salted, "Server Key"), signed)
	return []byte(final + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

func (s *scram) mac(key []byte, text string) []byte {
	h := hmac.New(s.hash, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
