package emqxapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/restante/restante/fault"
)

// nobody is a client id that the probe asks about. Whether there is such a client makes no difference.
const nobody = "restante-check"

// Probe asks EMQX about a client, which changes nothing there. It returns nil when EMQX has answered and the login is good; whether
// the key may subscribe clients is known only once it does. Its error says what to do.
func (c *Client) Probe(ctx context.Context) error {
	path := fmt.Sprintf("/api/v%d/clients/%s", c.cfg.Version, nobody)
	status, body, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return fmt.Errorf("%w: %s", err, advice(err))
	}
	var answer struct {
		Code   any     `json:"code"`
		Client *string `json:"clientid"`
	}
	ours := json.Unmarshal(body, &answer) == nil
	switch {
	case status == http.StatusOK && ours && c.cfg.Version == 4 && answer.Code == float64(codeDone):
		return nil
	case status == http.StatusOK && ours && answer.Client != nil: // it is there
		return nil
	case status == http.StatusNotFound && c.cfg.Version != 4 && noClient(answer.Code):
		return nil
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("emqx api: HTTP %d for the key %q: put delivery.api.key and its secret right; they are those of an API key (version 4: of an application), not of a dashboard user",
			status, c.cfg.Key)
	case status == http.StatusNotFound, status/100 == 3:
		return fmt.Errorf("emqx api: HTTP %d for %s: put delivery.api.url right, which is the address without /api, or delivery.api.version", status, path)
	case status/100 == 5:
		return fmt.Errorf("emqx api: HTTP %d: it is not ready, or what stands before it cannot reach it", status)
	}
	return fmt.Errorf("emqx api: answer %d is not of EMQX %d: put delivery.api.url and version right; a port with TLS wants https://", status, c.cfg.Version)
}

// noClient reports whether a code of version 5 says that there is no such client.
func noClient(code any) bool { return code == "CLIENTID_NOT_FOUND" || code == "RESOURCE_NOT_FOUND" }

// advice is what to do about an API that gives no answer.
func advice(err error) string {
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return "the port is one without TLS: write http:// in delivery.api.url"
	}
	if a := fault.TLSAdvice(err, "delivery.api.tls"); a != "" {
		return a
	}
	_, network := errors.AsType[*net.OpError](err)
	if os.IsTimeout(err) || errors.Is(err, context.DeadlineExceeded) {
		return "open the way to its port, or put delivery.api.url right"
	}
	if network {
		return "start EMQX with its HTTP API, open the way to its port, or put delivery.api.url right"
	}
	return "put delivery.api.url right: a port with TLS wants https://"
}
