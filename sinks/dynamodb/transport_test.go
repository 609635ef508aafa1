package dynamodb

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// closed is a body as the SDK leaves it.
type closed struct{ io.ReadCloser }

func (closed) WriteTo(io.Writer) (int64, error) { return 0, io.EOF }

type looks func(*http.Request) (*http.Response, error)

func (l looks) RoundTrip(r *http.Request) (*http.Response, error) { return l(r) }

// TestAClosedBodyIsAtItsEndAndNotBroken so that no connection is closed under an answer.
func TestAClosedBodyIsAtItsEndAndNotBroken(t *testing.T) {
	t.Parallel()
	body := closed{io.NopCloser(strings.NewReader(""))}
	if _, err := io.Copy(io.Discard, body); err == nil {
		t.Fatal("the body is not as the SDK's: the test tests nothing")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost", body)
	if err != nil {
		t.Fatal(err)
	}
	_, err = transport{looks(func(r *http.Request) (*http.Response, error) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Errorf("copy the rest of a closed body: %v", err)
		}
		return &http.Response{}, nil
	})}.RoundTrip(req) //nolint:bodyclose // there is none
	if err != nil || req.Body != body {
		t.Errorf("%v; the caller's request was changed: %v", err, req.Body != body)
	}
}
