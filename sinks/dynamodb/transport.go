package dynamodb

import (
	"io"
	"net/http"
)

// transport shields net/http from the SDK's request bodies. The SDK closes a body as soon as the answer begins, and a closed one
// gives io.EOF as the error of its WriteTo; to net/http, which may still be looking for the body's end, that is a write that
// failed, and it closes the connection under the answer. Behind plain Read the same io.EOF is what it should be, an end.
type transport struct{ http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r = r.WithContext(r.Context()) // a copy: the caller's stays as it is
		r.Body = struct{ io.ReadCloser }{r.Body}
	}
	return t.RoundTripper.RoundTrip(r)
}
