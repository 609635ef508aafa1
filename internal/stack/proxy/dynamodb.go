package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Faults are the chances, each from 0 to 1 and together at most 1, with which a request meets the fault; the rest pass.
type Faults struct {
	Unprocessed float64 // part of a batch is not done and given back; other requests pass
	Throttled   float64 // the answer is one of the refusals for too many requests; nothing is done
	Internal    float64 // the answer is 500 or 503; nothing is done
	Slow        float64 // the answer comes up to SlowBy late
	CutBefore   float64 // the connection is cut; nothing is done
	CutAfter    float64 // the connection is cut in place of the answer, or in its middle; what was asked for is done

	SlowBy time.Duration
}

// Counts say how many requests met which fault, and how many there were.
type Counts struct {
	Requests, Unprocessed, Throttled, Internal, Slow, CutBefore, CutAfter int
}

// DynamoDB is a proxy for a DynamoDB endpoint that does not verify signatures, as DynamoDB Local: parts of batches are withheld from it.
// Its methods may be called from any goroutine.
type DynamoDB struct {
	target   string
	listener net.Listener
	server   http.Server
	client   http.Client
	running  sync.WaitGroup
	done     chan struct{} // closed by Close

	mu     sync.Mutex
	rng    *rand.Rand
	faults Faults
	counts Counts
}

// ListenDynamoDB starts a proxy on a free port of 127.0.0.1 for the endpoint, a URL. The seed decides the sequence of faults; which of
// concurrent requests meets which is left to their order. Close ends it.
func ListenDynamoDB(endpoint string, seed uint64, f Faults) (*DynamoDB, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for clients of %s: %w", endpoint, err)
	}
	p := &DynamoDB{
		target: strings.TrimSuffix(endpoint, "/"), listener: l, done: make(chan struct{}),
		client: http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}, Timeout: time.Minute},
		rng:    rand.New(rand.NewPCG(seed, seed)), faults: f, //nolint:gosec // to be repeated, not secret
	}
	p.server = http.Server{Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: time.Minute}
	p.running.Go(func() { _ = p.server.Serve(l) }) // ends with Close
	return p, nil
}

// Endpoint is the URL that clients use.
func (p *DynamoDB) Endpoint() string { return "http://" + p.listener.Addr().String() }

// Set changes the chances, for the requests to come.
func (p *DynamoDB) Set(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
}

// Counts tell what happened so far.
func (p *DynamoDB) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Close cuts all connections and waits until nothing of the proxy runs.
func (p *DynamoDB) Close() error {
	close(p.done)
	err := p.server.Close()
	p.running.Wait()
	p.client.CloseIdleConnections()
	return err
}

// draw decides what the next request meets. The action gets random numbers of its own, so that concurrent ones keep the sequence.
func (p *DynamoDB) draw(batch bool) (fault string, slow time.Duration, rng *rand.Rand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.Requests++
	chance, own := p.rng.Float64(), p.rng.Uint64()
	rng = rand.New(rand.NewPCG(own, own)) //nolint:gosec // to be repeated, not secret
	for _, c := range []struct {
		name   string
		chance float64
		count  *int
	}{
		{unprocessed, p.faults.Unprocessed, &p.counts.Unprocessed},
		{throttled, p.faults.Throttled, &p.counts.Throttled},
		{internal, p.faults.Internal, &p.counts.Internal},
		{slowed, p.faults.Slow, &p.counts.Slow},
		{cutBefore, p.faults.CutBefore, &p.counts.CutBefore},
		{cutAfter, p.faults.CutAfter, &p.counts.CutAfter},
	} {
		if chance >= c.chance {
			chance -= c.chance
			continue
		}
		if c.name == unprocessed && !batch {
			return "", 0, rng
		}
		*c.count++
		return c.name, time.Duration(rng.Float64() * float64(p.faults.SlowBy)), rng
	}
	return "", 0, rng
}

const (
	unprocessed = "unprocessed"
	throttled   = "throttled"
	internal    = "internal"
	slowed      = "slowed"
	cutBefore   = "cut before"
	cutAfter    = "cut after"
)

func (p *DynamoDB) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	fault, slow, rng := p.draw(batches[action] != nil)
	switch fault {
	case throttled:
		name := throttles[rng.IntN(len(throttles))]
		answer(w, http.StatusBadRequest, name, "The proxy of the tests asks for fewer requests.")
		return
	case internal:
		if rng.IntN(2) == 0 {
			answer(w, http.StatusServiceUnavailable, "ServiceUnavailable", "The proxy of the tests is not available.")
		} else {
			answer(w, http.StatusInternalServerError, "InternalServerError", "The proxy of the tests has an internal error.")
		}
		return
	case cutBefore:
		panic(http.ErrAbortHandler)
	case slowed:
		select {
		case <-p.done:
		case <-r.Context().Done():
		case <-time.After(slow):
		}
	}
	got, err := p.ask(r, body, action, fault == unprocessed, rng)
	if err != nil {
		// As the server is not there, neither is the proxy.
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), got.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(got.body)))
	if fault != cutAfter {
		w.WriteHeader(got.status)
		_, _ = w.Write(got.body)
		return
	}
	if half := len(got.body) / 2; rng.IntN(2) == 0 && half > 0 {
		w.WriteHeader(got.status)
		_, _ = w.Write(got.body[:half])
		_ = http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}

// throttles are the errors by which the service asks for fewer requests.
var throttles = []string{ //nolint:gochecknoglobals // never written
	"ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded",
}

func answer(w http.ResponseWriter, status int, name, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.dynamodb.v20120810#" + name, "message": message})
}

// reply is what the server answered.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// ask hands the request on; with part, only some of its batch.
func (p *DynamoDB) ask(r *http.Request, body []byte, action string, part bool, rng *rand.Rand) (reply, error) {
	if !part {
		return p.send(r, body)
	}
	kept, restore, err := batches[action](body, rng)
	if err != nil {
		return p.send(r, body) // the server says better what is wrong with it
	}
	got := reply{status: http.StatusOK, header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, body: []byte("{}")}
	if kept != nil {
		if got, err = p.send(r, kept); err != nil || got.status != http.StatusOK {
			return got, err
		}
	}
	if got.body, err = restore(got.body); err != nil {
		return reply{}, err
	}
	got.header.Del("X-Amz-Crc32") // of another body
	return got, nil
}

func (p *DynamoDB) send(r *http.Request, body []byte) (reply, error) {
	// What was asked for is done even when the client is gone by then.
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, p.target+r.URL.RequestURI(), bytes.NewReader(body)) //nolint:gosec // the target is the test's
	if err != nil {
		return reply{}, err
	}
	req.Header = r.Header.Clone()
	req.Header.Del("Accept-Encoding")
	resp, err := p.client.Do(req) //nolint:gosec // the target is the test's
	if err != nil {
		return reply{}, err
	}
	got, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: got}, errors.Join(err, resp.Body.Close())
}
