package dynamodb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// call is one request as the proxy sees it.
type call struct {
	operation string // "BatchWriteItem"
	body      []byte
	w         http.ResponseWriter
	forward   func(body []byte) (status int, answer []byte)
}

// answer sends what the service would.
func (c call) answer(status int, body []byte) {
	c.w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body)
}

// refuse answers with an error of the service's.
func (c call) refuse(status int, code string) {
	c.answer(status, fmt.Appendf(nil, `{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"by the proxy"}`, code))
}

// cut ends the connection without an answer, or in the midst of one.
func (c call) cut(part []byte) {
	conn, buf, err := c.w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err) // HTTP/1.1 can be hijacked
	}
	if len(part) > 0 {
		_, _ = fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n%s", len(part), part[:len(part)/2])
		_ = buf.Flush()
	}
	_ = conn.Close()
}

// proxy stands before a real server and lets handle decide what becomes of each request.
func proxy(tb testing.TB, endpoint string, handle func(call)) string {
	tb.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	client := &http.Client{Transport: transport}
	var late sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		late.Add(1)
		defer late.Done()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		header := r.Header.Clone()
		_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		handle(call{operation: operation, body: body, w: w, forward: func(body []byte) (int, []byte) {
			// What the client gives up on lands all the same.
			req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), http.MethodPost, endpoint, bytes.NewReader(body))
			if err != nil {
				tb.Error(err)
				return http.StatusBadGateway, nil
			}
			req.Header = header
			req.Header.Del("Accept-Encoding")
			resp, err := client.Do(req)
			if err != nil {
				return http.StatusBadGateway, nil
			}
			defer func() { _ = resp.Body.Close() }()
			answer, err := io.ReadAll(resp.Body)
			if err != nil {
				return http.StatusBadGateway, nil
			}
			return resp.StatusCode, answer
		}})
	}))
	tb.Cleanup(func() {
		late.Wait()
		server.Close()
		transport.CloseIdleConnections()
	})
	return server.URL
}

// faults is what a service under stress does, one request in three, as the seed says.
type faults struct {
	// late lets requests land behind the client's time-out, too. Without it, none is passed by one that the client sent later.
	late     bool
	patience time.Duration // that the client has

	mu      sync.Mutex
	rng     *rand.Rand
	seen    map[string]int
	flying  map[int]time.Time // since when
	flights int
	landed  sync.Cond
}

func newFaults(seed uint64, patience time.Duration, late bool) *faults {
	f := &faults{late: late, patience: patience, rng: rand.New(rand.NewPCG(seed, 1)), seen: make(map[string]int), flying: make(map[int]time.Time)}
	f.landed.L = &f.mu
	return f
}

// inOrder lets a request to the service only when none is there that the client may have given up: on a machine that stands still
// for a while that happens to any of them.
func (f *faults) inOrder(forward func([]byte) (int, []byte)) func([]byte) (int, []byte) {
	return func(body []byte) (int, []byte) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for f.givenUp() {
			f.landed.Wait()
		}
		f.flights++
		me := f.flights
		f.flying[me] = time.Now()
		f.mu.Unlock()
		status, answer := forward(body)
		f.mu.Lock()
		delete(f.flying, me)
		f.landed.Broadcast()
		return status, answer
	}
}

// givenUp reports whether a request is in the air for so long that the client may soon be done with it.
func (f *faults) givenUp() bool {
	for _, since := range f.flying {
		if time.Since(since) > f.patience/4 {
			return true
		}
	}
	return false
}

func (f *faults) roll(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(n)
}

func (f *faults) count(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[what]++
}

func (f *faults) handle(c call) {
	if !f.late {
		c.forward = f.inOrder(c.forward)
	}
	switch f.roll(40) {
	case 0, 1:
		f.count("throttled")
		c.refuse(http.StatusBadRequest, "ProvisionedThroughputExceededException")
	case 2:
		f.count("throttled")
		c.refuse(http.StatusBadRequest, "ThrottlingException")
	case 3, 4:
		f.count("500")
		c.refuse(http.StatusInternalServerError, "InternalServerError")
	case 5:
		f.count("cut before")
		c.cut(nil)
	case 6:
		f.count("cut behind")
		c.forward(c.body)
		c.cut(nil)
	case 7:
		f.count("cut within")
		_, answer := c.forward(c.body)
		c.cut(answer)
	case 8:
		if f.roll(4) > 0 {
			status, answer := c.forward(c.body)
			c.answer(status, answer)
			return
		}
		f.count("slow")
		longer := f.patience + 300*time.Millisecond
		if f.late {
			time.Sleep(longer)
		}
		status, answer := c.forward(c.body)
		if !f.late {
			time.Sleep(longer)
		}
		c.answer(status, answer)
	case 9, 10, 11, 12:
		f.partly(c)
	default:
		status, answer := c.forward(c.body)
		c.answer(status, answer)
	}
}

// partly lets some of a batch through and says that the rest is unprocessed.
func (f *faults) partly(c call) {
	if c.operation != "BatchWriteItem" {
		status, answer := c.forward(c.body)
		c.answer(status, answer)
		return
	}
	var in map[string]json.RawMessage
	var items map[string][]json.RawMessage
	must(json.Unmarshal(c.body, &in))
	must(json.Unmarshal(in["RequestItems"], &items))
	through, left := map[string][]json.RawMessage{}, map[string][]json.RawMessage{}
	for table, all := range items {
		for _, it := range all {
			if f.roll(2) == 0 {
				through[table] = append(through[table], it)
			} else {
				left[table] = append(left[table], it)
			}
		}
	}
	f.count("unprocessed")
	out := []byte(`{}`)
	if len(through) > 0 {
		in["RequestItems"] = jsonOf(through)
		var status int
		if status, out = c.forward(jsonOf(in)); status != http.StatusOK {
			c.answer(status, out)
			return
		}
	}
	var answer map[string]json.RawMessage
	must(json.Unmarshal(out, &answer))
	answer["UnprocessedItems"] = jsonOf(left)
	c.answer(http.StatusOK, jsonOf(answer))
}

func jsonOf(v any) []byte {
	b, err := json.Marshal(v)
	must(err)
	return b
}

func must(err error) {
	if err != nil {
		panic(err) // the test itself is wrong
	}
}
