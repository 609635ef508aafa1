package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/restante/restante/event"
	"github.com/restante/restante/mqtt"
)

// refusal is one thing of a request that is no event, in the answer.
type refusal struct {
	At     int    `json:"at"` // its place in the body's array, from 0
	Reason string `json:"reason"`
	Text   string `json:"text"`
}

// problem is why a request is not read at all.
type problem struct {
	status  int
	counter mqtt.Counter
	text    string
}

func refuse(c mqtt.Counter, format string, args ...any) error {
	return &mqtt.Refusal{Counter: c, Err: fmt.Errorf(format, args...)}
}

// serve answers one request: 200 when all of its events are durable, 503 when they are not in time, 400 when something in it is no
// event; then what is one was taken all the same, since a broker does not repeat what is answered so.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if p := s.admit(w, r); p != nil {
		s.reject(w, p)
		return
	}
	ctx, cancel := mqtt.Within(r.Context(), s.work, s.cfg.Budget)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		s.missed(w, context.Cause(ctx))
		return
	}
	body, p := s.read(w, r)
	if p != nil {
		s.reject(w, p)
		return
	}
	items, err := split(body)
	if err != nil {
		s.reject(w, &problem{http.StatusBadRequest, mqtt.CountRefusedJSON, err.Error()})
		return
	}
	var events []event.Event
	var refused []refusal
	for i, item := range items {
		es, errs := s.format.events(r.Header, item)
		events = append(events, es...)
		for _, err := range errs {
			if why, bad := s.refused(i, err); bad {
				refused = append(refused, why)
			}
		}
	}
	fresh, cancelFresh := mqtt.Within(r.Context(), s.work, s.cfg.Budget) // the body may have come slowly
	defer cancelFresh()
	poison := func(err error) { s.refused(0, &mqtt.Refusal{Counter: mqtt.CountRefusedPoison, Err: err}) }
	if err := mqtt.Durable(fresh, s.accept, poison, events...); err != nil {
		s.missed(w, err)
		return
	}
	if len(refused) > 0 {
		const most = 20
		answer(w, http.StatusBadRequest, map[string]any{"taken": len(events), "refused": refused[:min(most, len(refused))], "refusals": len(refused)})
		return
	}
	answer(w, http.StatusOK, s.format.answer(r.Header))
}

// admit says why a request is not even read; nil = it is.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) *problem {
	switch {
	case r.URL.Path != s.cfg.Path:
		return &problem{http.StatusNotFound, mqtt.CountRefusedRequest, "no such path"}
	case !s.knows(r):
		w.Header().Set("WWW-Authenticate", "Bearer")
		return &problem{http.StatusUnauthorized, mqtt.CountRefusedAuth, "the token is missing or wrong"}
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		return &problem{http.StatusMethodNotAllowed, mqtt.CountRefusedRequest, "only POST is understood"}
	case r.Header.Get("Content-Encoding") != "" && r.Header.Get("Content-Encoding") != "identity":
		return &problem{http.StatusUnsupportedMediaType, mqtt.CountRefusedRequest, "the body must not be compressed"}
	case r.ContentLength > s.cfg.MaxBody:
		return s.tooLarge()
	}
	return nil
}

func (s *Server) tooLarge() *problem {
	return &problem{http.StatusRequestEntityTooLarge, mqtt.CountRefusedSize, fmt.Sprintf("the body is larger than %d bytes", s.cfg.MaxBody)}
}

// read returns the body.
func (s *Server) read(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.cfg.MaxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, s.tooLarge()
	}
	switch {
	case err != nil:
		return nil, &problem{http.StatusBadRequest, mqtt.CountRefusedRequest, "the body did not come whole"}
	case !s.signed(r, body):
		return nil, &problem{http.StatusUnauthorized, mqtt.CountRefusedAuth, "the signature of the body is missing or wrong"}
	}
	return body, nil
}

// knows reports whether the request has the token. What is compared has one length, whatever was sent.
func (s *Server) knows(r *http.Request) bool {
	if s.cfg.Token == "" {
		return true
	}
	scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got, want := sha256.Sum256([]byte(strings.TrimSpace(sent))), sha256.Sum256([]byte(s.cfg.Token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

func (s *Server) signed(r *http.Request, body []byte) bool {
	if s.cfg.HMACKey == "" {
		return true
	}
	got, err := hex.DecodeString(strings.TrimPrefix(r.Header.Get(s.cfg.HMACHeader), "sha256="))
	h := hmac.New(sha256.New, []byte(s.cfg.HMACKey))
	h.Write(body)
	return err == nil && hmac.Equal(got, h.Sum(nil))
}

// split gives the objects of a body: itself, or the items of its array.
func split(body []byte) ([]json.RawMessage, error) {
	if !utf8.Valid(body) {
		return nil, errors.New("the body is not UTF-8") // the decoder would change it without a word
	}
	text := bytes.TrimLeft(body, " \t\r\n")
	if !bytes.HasPrefix(text, []byte("[")) {
		if !json.Valid(text) {
			return nil, errors.New("the body is not JSON")
		}
		return []json.RawMessage{text}, nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(text, &items); err != nil {
		return nil, fmt.Errorf("the body is not JSON: %w", err)
	}
	if len(items) == 0 {
		return nil, errors.New("the body holds no event")
	}
	return items, nil
}

// missed is what becomes of a request whose events are not durable in time.
func (s *Server) missed(w http.ResponseWriter, err error) {
	counter, repeats := mqtt.CountGap, s.cfg.Format == EMQXRule
	if repeats {
		counter = mqtt.CountUnavailable
	}
	s.cfg.Count(counter)
	s.gaps.Say(func(before int) {
		s.cfg.Log.Error("events were not durable in time", "format", string(s.cfg.Format), "broker_repeats", repeats, "err", err, "unsaid", before)
	})
	w.Header().Set("Retry-After", retryAfterS)
	answer(w, http.StatusServiceUnavailable, map[string]string{"error": "the events are not durable"})
}

// reject answers a request that was not read.
func (s *Server) reject(w http.ResponseWriter, p *problem) {
	s.refused(0, refuse(p.counter, "%s", p.text))
	answer(w, p.status, map[string]string{"error": p.text, "reason": string(p.counter)})
}

// refused counts what is no event, and says whether the broker is to know that its request was wrong.
func (s *Server) refused(at int, err error) (refusal, bool) {
	why := &mqtt.Refusal{Counter: mqtt.CountRefusedRequest}
	errors.As(err, &why)
	s.cfg.Count(why.Counter)
	switch why.Counter { //nolint:exhaustive // these are well-formed, and of no use
	case mqtt.CountIgnored, mqtt.CountOwnEvent, mqtt.CountOwnRefused, mqtt.CountReplay, mqtt.CountUnmappedAck, mqtt.CountRefusedAnswer:
		if why.Counter == mqtt.CountUnmappedAck || why.Counter == mqtt.CountRefusedAnswer {
			s.say(at, err)
		}
		return refusal{}, false
	}
	s.say(at, err)
	return refusal{At: at, Reason: string(why.Counter), Text: err.Error()}, true
}

func (s *Server) say(at int, err error) {
	s.refusals.Say(func(before int) {
		s.cfg.Log.Warn("request refused", "format", string(s.cfg.Format), "at", at, "err", err, "unsaid", before)
	})
}

// answer writes JSON. A broker that has gone hears nothing.
func answer(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		text = []byte("{}") // unreachable: only texts and numbers are answered
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}
