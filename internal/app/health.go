package app

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Condition is one thing that must hold.
type Condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// The conditions of being ready.
const (
	conditionKafka    = "kafka"
	conditionSources  = "sources"
	conditionDelivery = "delivery"
)

func conditionSink(name string) string  { return "sink " + name }
func conditionGroup(name string) string { return "group " + name }

// Health is what the probes are told. A process is ready when it has conditions, all hold, and it is not draining; it is alive
// while all its loops turn. Safe for concurrent use; make it with [NewHealth].
type Health struct {
	mu         sync.Mutex
	conditions map[string]Condition
	loops      map[*Loop]struct{}
	draining   time.Time // since when; zero = it is not
}

// NewHealth makes the health of a process that is not ready yet; the named conditions are awaited.
func NewHealth(awaited ...string) *Health {
	h := &Health{conditions: map[string]Condition{}, loops: map[*Loop]struct{}{}}
	for _, name := range awaited {
		h.Set(name, false, "not yet")
	}
	return h
}

// Set says how a condition stands.
func (h *Health) Set(name string, ok bool, detail string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conditions[name] = Condition{name, ok, detail}
}

// Drain makes the process not ready for good.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining.IsZero() {
		h.draining = time.Now()
	}
}

// Drained is how long the process has been finishing what it holds; 0 = nobody has asked it to end.
func (h *Health) Drained() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining.IsZero() {
		return 0
	}
	return time.Since(h.draining)
}

// Ready reports whether the process takes work, with all conditions by name.
func (h *Health) Ready() (bool, []Condition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]Condition, 0, len(h.conditions)+1)
	for _, name := range sortedKeys(h.conditions) {
		all = append(all, h.conditions[name])
	}
	if !h.draining.IsZero() {
		all = append(all, Condition{"running", false, "shutting down"})
	}
	if len(all) == 0 {
		all = append(all, Condition{"started", false, "not yet"})
	}
	return !slices.ContainsFunc(all, func(c Condition) bool { return !c.OK }), all
}

// Loop is a loop that must turn at least once in its limit, also when it has nothing to do.
type Loop struct {
	h     *Health
	name  string
	limit time.Duration
	last  time.Time
}

// Loop registers a loop that has just turned. Its owner calls [Loop.Turn] each time round and [Loop.Stop] at its end.
func (h *Health) Loop(name string, limit time.Duration) *Loop {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &Loop{h: h, name: name, limit: limit, last: time.Now()}
	h.loops[l] = struct{}{}
	return l
}

// Turn says that the loop goes round.
func (l *Loop) Turn() {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	l.last = time.Now()
}

// Stop says that the loop has ended as it should.
func (l *Loop) Stop() {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	delete(l.h.loops, l)
}

// Alive reports whether all loops turn, with all loops by name.
func (h *Health) Alive() (bool, []Condition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]Condition, 0, len(h.loops))
	alive := true
	for l := range h.loops {
		age := time.Since(l.last)
		ok := age <= l.limit
		alive = alive && ok
		detail := ""
		if !ok {
			detail = fmt.Sprintf("has not turned for %s, the limit is %s", age.Round(time.Millisecond), l.limit)
		}
		all = append(all, Condition{l.name, ok, detail})
	}
	slices.SortFunc(all, func(a, b Condition) int {
		return strings.Compare(a.Name+"\x00"+a.Detail, b.Name+"\x00"+b.Detail)
	})
	return alive, all
}

// report answers a probe: 200 or 503, and each condition on a line, or as JSON when that is asked for.
func report(ask func() (bool, []Condition)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ok, all := ask()
		status := http.StatusOK
		if !ok {
			status = http.StatusServiceUnavailable
		}
		w.Header().Set("Cache-Control", "no-store")
		if strings.Contains(r.Header.Get("Accept"), "application/json") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]any{"ok": ok, "conditions": all})
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		var b strings.Builder
		for _, c := range all {
			sign := "ok  "
			if !c.OK {
				sign = "FAIL"
			}
			b.WriteString(strings.TrimRight(sign+" "+c.Name+"  "+c.Detail, " ") + "\n")
		}
		if len(all) == 0 {
			b.WriteString("ok\n")
		}
		_, _ = w.Write([]byte(b.String()))
	}
}
