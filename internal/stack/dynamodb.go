package stack

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

var dynamoDBRecipe = recipe{
	ports: 1,
	// No archive: one of its jars names its own directory as a place of classes, which Java refuses.
	flags: []string{
		"-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
		"-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote",
	},
	prepare: func(_ *install, s site) error {
		return os.Mkdir(filepath.Join(s.dir, "data"), 0o750)
	},
	main: func(in *install, s site) []string {
		where := []string{"-dbPath", filepath.Join(s.dir, "data")}
		if s.fast {
			where = []string{"-inMemory"}
		}
		return append([]string{
			"-Djava.library.path=" + filepath.Join(in.dir, "lib"), "software.amazon.dynamodb.services.local.main.ServerRunner",
			"-sharedDb", "-disableTelemetry", "-port", strconv.Itoa(s.ports[0]),
		}, where...)
	},
	address: func(s site) string { return "http://127.0.0.1:" + strconv.Itoa(s.ports[0]) },
	ping:    pingDynamoDB,
}

// pingDynamoDB asks for the tables without signing: a server that serves answers with them or with its refusal, as JSON.
func pingDynamoDB(ctx context.Context, endpoint string, _ int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader("{}")) //nolint:gosec // an address of the tests
	if err != nil {
		return err
	}
	req.Header.Set("X-Amz-Target", "DynamoDB_20120810.ListTables")
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req) //nolint:gosec // an address of the tests
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return fmt.Errorf("read the answer of %s: %w", endpoint, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusBadRequest {
		return fmt.Errorf("%s answers %s: %v", endpoint, resp.Status, body)
	}
	return nil
}
