package kafkalog

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

// FuzzFetched is the same for what frames the records.
func FuzzFetched(f *testing.F) {
	for version := int16(oldestFetch); version <= newestFetch; version++ {
		f.Add(fetchAnswer(version, 0, topic, []byte("records")), version)
	}
	f.Fuzz(func(t *testing.T, b []byte, version int16) {
		got, err := parseFetched(b, version, 7, tp0)
		if err != nil && got.set != nil || len(got.set) > len(b) {
			t.Fatalf("%d bytes of records: %v", len(got.set), err)
		}
	})
}

// fetchAnswer is an answer to request 7 of the given version.
func fetchAnswer(version int16, code uint16, topic string, set []byte) []byte {
	e := binary.BigEndian
	b := e.AppendUint32(e.AppendUint32(nil, 7), 1500) // throttled by 1.5 s
	if version >= 7 {
		b = append(b, 0, 0, 0, 0, 0, 0)
	}
	b = e.AppendUint16(e.AppendUint32(b, 1), uint16(len(topic)))
	b = e.AppendUint32(e.AppendUint32(append(b, topic...), 1), 0)
	b = append(e.AppendUint16(b, code), make([]byte, 16)...)
	if version >= 5 {
		b = append(b, make([]byte, 8)...)
	}
	b = append(e.AppendUint32(b, 2), make([]byte, 32)...) // aborted transactions
	if version >= 11 {
		b = e.AppendUint32(b, math.MaxUint32)
	}
	return append(e.AppendUint32(b, uint32(len(set))), set...)
}

func TestAnswersOfAllVersionsAreRead(t *testing.T) {
	t.Parallel()
	for version := int16(oldestFetch); version <= newestFetch; version++ {
		b := fetchAnswer(version, 0, topic, []byte("records"))
		got, err := parseFetched(b, version, 7, tp0)
		if err != nil || string(got.set) != "records" || got.throttle != 1500*time.Millisecond {
			t.Errorf("v%d: %+v, %v", version, got, err)
		}
		for n := range b {
			if got, err := parseFetched(b[:n], version, 7, tp0); err == nil {
				t.Errorf("v%d, the first %d bytes: %+v", version, n, got)
			}
		}
		if got, err := parseFetched(b, version, 8, tp0); err == nil {
			t.Errorf("v%d, another request: %+v", version, got)
		}
		if got, err := parseFetched(fetchAnswer(version, 0, "other", nil), version, 7, tp0); err == nil {
			t.Errorf("v%d, another topic: %+v", version, got)
		}
		if _, err := parseFetched(fetchAnswer(version, 1, topic, nil), version, 7, tp0); err == nil {
			t.Errorf("v%d: the error is lost", version)
		}
	}
}
