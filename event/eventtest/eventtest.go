// Package eventtest makes the words of events out of texts that a test knows to be right. What is wrong ends the test.
package eventtest

import (
	"testing"

	"github.com/restante/restante/event"
)

// Topic is [event.ParseTopic].
func Topic(tb testing.TB, text string) event.Topic {
	tb.Helper()
	return must(tb, event.ParseTopic, text)
}

// Filter is [event.ParseFilter].
func Filter(tb testing.TB, text string) event.Filter {
	tb.Helper()
	return must(tb, event.ParseFilter, text)
}

// ID is [event.ParseID].
func ID(tb testing.TB, text string) event.ID {
	tb.Helper()
	return must(tb, event.ParseID, text)
}

func must[T any](tb testing.TB, parse func(string) (T, error), text string) T {
	tb.Helper()
	v, err := parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}
