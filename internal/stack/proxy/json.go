package proxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// decode reads an object, and one of its fields into a type of its own. A field that is missing is left as it is.
func decode(text []byte, whole *object, field string, into any) error {
	if err := json.Unmarshal(text, whole); err != nil {
		return fmt.Errorf("read a body: %w", err)
	}
	raw, ok := (*whole)[field]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("read %s: %w", field, err)
	}
	return nil
}

// encode writes the object with the field in place of its own.
func encode(whole object, field string, value any) ([]byte, error) {
	changed, err := with(whole, field, value)
	if err != nil {
		return nil, err
	}
	return json.Marshal(changed)
}

func with(whole object, field string, value any) (object, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", field, err)
	}
	changed := maps.Clone(whole)
	if changed == nil {
		changed = object{}
	}
	changed[field] = raw
	return changed, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
