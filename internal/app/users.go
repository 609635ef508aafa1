package app

import (
	"fmt"
	"os"
	"strings"
)

// ReadUsers reads the users of an embedded broker: a line user:password for each; empty lines and those that begin with # are
// left out. No file = nil: everybody may connect.
func ReadUsers(file string) (map[string]string, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // nil is the answer: there is no list
	}
	b, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("users_file: %w", err)
	}
	users := make(map[string]string)
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		user, password, ok := strings.Cut(line, ":")
		if !ok || user == "" {
			return nil, fmt.Errorf("users_file: line %d of %s is not user:password", n, file)
		}
		if _, dup := users[user]; dup {
			return nil, fmt.Errorf("users_file: line %d of %s: user %q stands there twice", n, file, user)
		}
		users[user] = password
	}
	if len(users) == 0 {
		return nil, fmt.Errorf("users_file: %s names no user, so nobody could connect", file)
	}
	return users, nil
}
