package event

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"
)

// ID is the 128-bit id of a message: µs since the epoch (64 bits), node (48 bits), sequence (16 bits), as EMQX makes it.
// Its canonical text is 32 upper-case hex digits, so that text order is time order. The zero ID is no id.
type ID struct{ hi, lo uint64 }

// IDOf builds an id from its parts. Only the low 48 bits of node are used.
func IDOf(micros int64, node uint64, seq uint16) ID {
	return ID{hi: uint64(micros), lo: node<<16 | uint64(seq)} //nolint:gosec // ids before 1970 are refused where they are parsed
}

// FirstIDAt is the smallest id of the microsecond of t, LastIDAt the largest: bounds of a range of ids by time.
func FirstIDAt(t time.Time) ID { return IDOf(max(t.UnixMicro(), 0), 0, 0) }

// LastIDAt is the largest id of the microsecond of t.
func LastIDAt(t time.Time) ID { return ID{hi: uint64(max(t.UnixMicro(), 0)), lo: ^uint64(0)} }

// Micros is the id's time in µs since the epoch: T in the documents, the write timestamp of all that the message changes.
func (id ID) Micros() int64 { return int64(id.hi) } //nolint:gosec // ParseID refuses ids whose time part is over 63 bits

// Time is the id's time.
func (id ID) Time() time.Time { return time.UnixMicro(id.Micros()) }

// Before is the largest id that is smaller; nothing is before the zero ID but itself.
func (id ID) Before() ID {
	if id.IsZero() {
		return id
	}
	if id.lo == 0 {
		id.hi--
	}
	id.lo--
	return id
}

// WithTime returns the id with its time part replaced, node and sequence kept.
func (id ID) WithTime(t time.Time) ID { return ID{hi: uint64(max(t.UnixMicro(), 0)), lo: id.lo} }

// IsZero reports whether id is no id.
func (id ID) IsZero() bool { return id == ID{} }

// Compare orders ids by time, then node, then sequence; -1, 0 or +1.
func (id ID) Compare(other ID) int {
	return cmp.Or(cmp.Compare(id.hi, other.hi), cmp.Compare(id.lo, other.lo))
}

// String is the canonical form: 32 upper-case hex digits.
func (id ID) String() string {
	var b [2 * idBytes]byte
	return string(id.appendTo(b[:0]))
}

// idBytes is the length of an id.
const idBytes = 16

func (id ID) appendTo(b []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, half := range [...]uint64{id.hi, id.lo} {
		for shift := 60; shift >= 0; shift -= 4 {
			b = append(b, digits[half>>shift&15])
		}
	}
	return b
}

func (id ID) bytes() (b [idBytes]byte) {
	binary.BigEndian.PutUint64(b[:8], id.hi)
	binary.BigEndian.PutUint64(b[8:], id.lo)
	return b
}

var errTimePart = errors.New("time part is over 63 bits")

// ParseID reads a message id: 32 hex digits of either case, or the shorter form without leading zeros that EMQX up to 4.2
// wrote (29 digits today). The zero id is refused.
func ParseID(s string) (ID, error) { return parseID(s) }

// parseID takes a header's bytes as they are: every record has an id or two.
func parseID[T string | []byte](s T) (ID, error) {
	if len(s) == 0 || len(s) > 2*idBytes {
		return ID{}, fmt.Errorf("message id %q: want up to 32 hex digits, have %d characters", clip(string(s)), len(s))
	}
	var id ID
	for i := range len(s) {
		d, ok := hexDigit(s[i])
		if !ok {
			return ID{}, fmt.Errorf("message id %q: %w", string(s), hex.InvalidByteError(s[i]))
		}
		id = ID{hi: id.hi<<4 | id.lo>>60, lo: id.lo<<4 | uint64(d)}
	}
	switch {
	case id.hi>>63 != 0:
		return ID{}, fmt.Errorf("message id %q: %w", string(s), errTimePart)
	case id.IsZero():
		return ID{}, fmt.Errorf("message id %q is zero", string(s))
	}
	return id, nil
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// The "base62" of EMQX's 3.x and 4.x backends writes the id's decimal text, three bytes at a time as four 6-bit groups;
// values 0 to 60 are one character of this alphabet, 61 to 63 are '9' and a letter. The short last group is not shifted.
const base62Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345678"

// Base62 writes the id in the form of EMQX's 3.x and 4.x backend plugins. That form is not in time order.
func (id ID) Base62() string {
	b := id.bytes()
	dec := new(big.Int).SetBytes(b[:]).String()
	var out strings.Builder
	put := func(v byte) {
		if v >= 61 {
			out.WriteByte('9')
			out.WriteByte('A' + v - 61)
			return
		}
		out.WriteByte(base62Alphabet[v])
	}
	for len(dec) >= 3 {
		put(dec[0] >> 2)
		put(dec[0]&3<<4 | dec[1]>>4)
		put(dec[1]&15<<2 | dec[2]>>6)
		put(dec[2] & 63)
		dec = dec[3:]
	}
	switch len(dec) {
	case 1:
		put(dec[0] >> 2)
		put(dec[0] & 3)
	case 2:
		put(dec[0] >> 2)
		put(dec[0]&3<<4 | dec[1]>>4)
		put(dec[1] & 15)
	}
	return out.String()
}

// ParseBase62 reads the form that [ID.Base62] writes.
func ParseBase62(s string) (ID, error) {
	fail := func(why string) (ID, error) { return ID{}, fmt.Errorf("base62 message id %q: %s", clip(s), why) }
	if len(s) > 128 {
		return fail("too long")
	}
	var groups []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '9' {
			i++
			if i == len(s) || s[i] < 'A' || s[i] > 'C' {
				return fail(fmt.Sprintf("'9' at position %d wants A, B or C behind it", i-1))
			}
			groups = append(groups, 61+s[i]-'A')
			continue
		}
		v := strings.IndexByte(base62Alphabet, s[i])
		if v < 0 {
			return fail(fmt.Sprintf("character %q at position %d", s[i], i))
		}
		groups = append(groups, byte(v)) //nolint:gosec // up to 60
	}
	var dec []byte
	for len(groups) >= 4 {
		g := groups[:4]
		dec = append(dec, g[0]<<2|g[1]>>4, g[1]<<4|g[2]>>2, g[2]<<6|g[3])
		groups = groups[4:]
	}
	switch len(groups) {
	case 1:
		return fail("one group left over")
	case 2:
		dec = append(dec, groups[0]<<2|groups[1])
	case 3:
		v := uint16(groups[0])<<10 | uint16(groups[1])<<4 | uint16(groups[2])
		dec = append(dec, byte(v>>8), byte(v)) //nolint:gosec // the two bytes of v
	}
	n, ok := new(big.Int).SetString(string(dec), 10)
	if !ok || n.Sign() <= 0 || dec[0] == '+' || n.BitLen() > 127 {
		return fail("does not hold a decimal 128-bit id")
	}
	var b [idBytes]byte
	n.FillBytes(b[:])
	id := ID{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}
	if id.hi>>63 != 0 {
		return fail(errTimePart.Error())
	}
	if id.Base62() != s {
		return fail("not in canonical form")
	}
	return id, nil
}

// Minter mints ids whose µs strictly increase, so that the µs alone orders what one process minted. Safe for concurrent use.
type Minter struct {
	// Node fills the 48 node bits; processes that mint beside each other must differ in it.
	Node uint64
	// Now is the process's wall clock.
	Now func() time.Time

	mu   sync.Mutex
	last int64
}

// Mint returns the next id: the clock's µs, or one past the last id when the clock has not moved on (or stepped back).
func (m *Minter) Mint() ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.Now().UnixMicro(), m.last+1)
	return IDOf(m.last, m.Node, 1)
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
