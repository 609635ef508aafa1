package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/restante/restante/internal/e2e/e2etest"
)

const postToken = "the token of the rules"

// postUntilTaken repeats, as EMQX's buffer does, what finds nobody or is answered with 503.
func postUntilTaken(ctx context.Context, url string, body []byte) error {
	for end := time.Now().Add(e2etest.Patience); ; time.Sleep(50 * time.Millisecond) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+postToken)
		answer, err := http.DefaultClient.Do(r)
		if err == nil {
			_ = answer.Body.Close() // only its status counts
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("answered %s", answer.Status)
			if answer.StatusCode != http.StatusServiceUnavailable {
				return err
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return err
		}
	}
}
